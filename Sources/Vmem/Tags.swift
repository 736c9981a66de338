// The supply of boundary tags: static ones for the boot, then pages from a source.
//
// A wholly free page (TagPool.swift) returns to the source, except one, so that a single segment allocated and freed in
// turn moves no pages. Arenas draw and return tags a few at a time, through their spares. The hash tables of the arenas
// get their pages from the same source.

import MemoryPrimitives
import Synchronization

/// A source of pages for tags. A page is 4096 bytes, aligned, of unknown contents. It is readable and writable at once
/// (through the direct map). The supply calls the source with no lock held.
package struct TagSource {
  /// Links count from here: pages lie above it, and less than 32 GiB.
  package let base: VirtualAddress
  let context: UnsafeMutableRawPointer?
  let allocatePage: @convention(c) (UnsafeMutableRawPointer?, UInt8) -> UnsafeMutableRawPointer?
  let freePage: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Void

  /// Makes a source of two functions.
  ///
  /// `allocatePage` gets the context and an `AllocationPriority.rawValue`, and answers a page or null; it must enter no arena.
  /// `freePage` gets the context and a page that came from `allocatePage`.
  package init(
    base: VirtualAddress, _ context: UnsafeMutableRawPointer?,
    allocatePage: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt8) -> UnsafeMutableRawPointer?,
    freePage: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Void
  ) {
    self.base = base
    self.context = context
    self.allocatePage = allocatePage
    self.freePage = freePage
  }

  /// Makes a source that has nothing, for static tags until there is memory.
  package static func nothing(base: VirtualAddress) -> TagSource {
    TagSource(base: base, nil, allocatePage: { _, _ in nil }, freePage: { _, _ in })
  }
}

/// A supply of boundary tags and the arenas that draw on it. A handle.
public struct Tags {
  let storage: UnsafeMutablePointer<TagsState>

  init(_ storage: UnsafeMutablePointer<TagsState>) { self.storage = storage }

  /// The state, in place.
  @inline(always) var state: TagsState { unsafeAddress { UnsafePointer(storage) } }

  /// Bytes that `create` needs, aligned to 64.
  package static var stateSize: ByteCount { ByteCount(MemoryLayout<TagsState>.stride) }
  /// Bytes of one boundary tag.
  package static var tagSize: ByteCount { ByteCount(MemoryLayout<Tag>.stride) }

  /// Makes a supply in `memory`. It starts with the `staticPages` pages at `staticTags`, which are page-aligned, lie
  /// above `source.base`, have 127 tags each and stay for good.
  package static func create(
    in memory: UnsafeMutableRawPointer, staticTags: UnsafeMutableRawPointer?, _ staticPages: PageCount,
    source: TagSource, machine: Machine
  ) -> Tags {
    let storage = memory.bindMemory(to: TagsState.self, capacity: 1)
    let links = TagLinks(base: source.base.rawValue)
    storage.initialize(
      to: TagsState(links: links, machine: machine, pool: Locked(.vmemTags, TagPool(links, source))))
    let tags = Tags(storage)
    if let staticTags {
      for page in 0..<Int(staticPages.rawValue) {
        let pointer = staticTags + page * Int(Page.size)
        precondition(links.reaches(pageAt: pointer), "static tags lie out of reach of a link")
        TagPool.prepare(pointer, links, isStatic: 1)
        tags.state.pool.withLock { $0.add(pointer) }
      }
    }
    return tags
  }

  /// Replaces the source of pages. Its base must be the one that the supply was made with, and it must accept the
  /// pages of the former source.
  package func setSource(_ source: TagSource) {
    precondition(source.base.rawValue == state.links.base, "links count from another base")
    state.pool.withLock { $0.source = source }
  }

  /// Visits each arena that draws on this supply, in the order of creation. None may be destroyed during the walk.
  package func forEachArena<E>(_ visit: (Arena) throws(E) -> Void) throws(E) {
    var next = state.pool.withLock { $0.firstArena }
    while let arena = next {
      try visit(arena)
      next = state.pool.withLock { _ in arena.next }
    }
  }

  // MARK: For arenas

  /// Adds a page of tags. Answers false when the source has none. No lock is held.
  func grow(_ priority: AllocationPriority) -> Bool {
    guard let page = allocatePage(priority) else { return false }
    TagPool.prepare(page, state.links, isStatic: 0)
    state.pool.withLock { $0.add(page) }
    return true
  }

  /// Allocates a page of unknown contents that links can name.
  func allocatePage(_ priority: AllocationPriority) -> UnsafeMutableRawPointer? {
    assert(holdsNoSpinLock(), "the source of tags is called with a spin lock held")
    if state.machine.failsHere(.vmem) { return nil }
    let source = state.pool.withLock { $0.source }
    guard let page = source.allocatePage(source.context, priority.rawValue) else { return nil }
    guard state.links.reaches(pageAt: page) else {
      source.freePage(source.context, page)
      return nil
    }
    return page
  }

  func freePage(_ page: UnsafeMutableRawPointer) {
    assert(holdsNoSpinLock(), "the source of tags is called with a spin lock held")
    let source = state.pool.withLock { $0.source }
    source.freePage(source.context, page)
  }

  /// Frees the wholly free pages beyond those that are kept. Called after tags were returned, with no lock held.
  func trim() {
    while let page = state.pool.withLock({ $0.detachSurplus() }) { freePage(page) }
  }

  /// Whether any thread waits for space or tags. Read it with the arena's lock held: see `TagsState.waiters`.
  @inline(always) var hasWaiters: Bool { state.waiters.load(ordering: .sequentiallyConsistent) != 0 }

  /// Whether any thread must be woken to try again. Read it after the change that may help.
  @inline(always) var hasRetrying: Bool { state.retrying.load(ordering: .sequentiallyConsistent) != 0 }

  /// Wakes the waiters that try again themselves. Called with no lock held, after tags returned or a source got a span.
  @inline(always) func wakeRetrying() {
    if hasRetrying { wakeWaiters() }
  }

  /// Wakes all waiters, each to see whether it was served. Called with no lock held.
  @inline(never) func wakeWaiters() { state.queue.wake(on: state.machine) }
}

/// The state of a supply. Fields are constants, atomics or locked: no code writes to them through `pointee`.
struct TagsState: ~Copyable {
  let links: TagLinks
  let machine: Machine
  let pool: Locked<TagPool>
  /// One queue for all arenas of the supply, because a thread waits in an arena and its sources at the same time.
  let queue = WaitQueue("address space", .memory)
  /// Threads that wait. A thread counts itself before it acquires an arena's lock to join, and a free reads the count
  /// with that lock held. So either the free sees the waiter, or the waiter's search sees the free.
  let waiters = Atomic<UInt32>(0)
  /// Waiters that no free can serve: they lack tags, or ask a source made of functions. Each counts itself, and then
  /// tries. A free in any arena reads the count after its own change. So either the try sees it, or it sees the waiter.
  let retrying = Atomic<UInt32>(0)
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension Tags: @unchecked Sendable {}
