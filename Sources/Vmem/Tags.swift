// The supply of boundary tags: static ones for the boot, then pages from a source.
//
// A page holds 128 units of 32 bytes; the first is its header, 127 are tags. The header counts the free
// ones and heads their list, and pages with free tags form a list. A wholly free page goes back to
// the source, except one, so that a lone segment made and freed in turn moves no pages. Arenas draw
// and return tags a few at a time, through their spares. The hash tables of the arenas take their pages
// from the same source.

import MemoryPrimitives
import Synchronization

/// Where pages for tags come from: a page is 4096 bytes, aligned, readable and writable with no
/// further ado (through the direct map), of unknown contents. Asked with no lock held.
public struct TagSource {
  /// Links count from here: pages lie above it, and less than 32 GiB.
  public let base: VirtualAddress
  let context: UnsafeMutableRawPointer?
  let taking: @convention(c) (UnsafeMutableRawPointer?, UInt8) -> UnsafeMutableRawPointer?
  let giving: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Void

  /// `take` gets the context and a `AllocationPriority.rawValue`, and answers a page or null; it must enter no arena.
  /// `give` gets the context and a page that came from `take`.
  public init(
    base: VirtualAddress, _ context: UnsafeMutableRawPointer?,
    take: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt8) -> UnsafeMutableRawPointer?,
    give: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Void
  ) {
    self.base = base
    self.context = context
    taking = take
    giving = give
  }

  /// A source that has nothing: what static tags are used with until there is memory.
  public static func nothing(base: VirtualAddress) -> TagSource {
    TagSource(base: base, nil, take: { _, _ in nil }, give: { _, _ in })
  }
}

/// Tags and pages of a supply, at one moment.
public struct TagFigures: Equatable, Sendable {
  /// Tags that exist, used or not.
  public var total: UInt64
  /// Tags that no arena has.
  public var free: UInt64
  /// Pages of tags, static ones included.
  public var pages: PageCount
  public var staticPages: PageCount
  /// Pages that the hash tables of arenas took.
  public var hashPages: PageCount
}

/// A supply of boundary tags and the arenas that draw on it. A handle.
public struct Tags {
  let state: UnsafeMutablePointer<TagsState>

  /// Bytes that `create` needs, aligned to 64.
  public static var stateSize: ByteCount { ByteCount(MemoryLayout<TagsState>.stride) }
  /// Bytes of one boundary tag.
  public static var tagSize: ByteCount { ByteCount(MemoryLayout<Tag>.stride) }

  /// A supply in `memory`, which starts with the `staticPages` pages at `staticTags` (page-aligned,
  /// above `source.base`, never given back; 127 tags each).
  public static func create(
    in memory: UnsafeMutableRawPointer, staticTags: UnsafeMutableRawPointer?, _ staticPages: PageCount,
    source: TagSource, machine: Machine
  ) -> Tags {
    let state = memory.bindMemory(to: TagsState.self, capacity: 1)
    let links = TagLinks(base: source.base.rawValue)
    state.initialize(
      to: TagsState(links: links, machine: machine, pool: Locked(.vmemTags, TagPool(links, source))))
    let tags = Tags(state: state)
    if let staticTags {
      for page in 0..<Int(staticPages.rawValue) {
        let pointer = staticTags + page * Int(Page.size)
        precondition(links.reaches(pageAt: pointer), "static tags lie out of reach of a link")
        TagPool.prepare(pointer, links, isStatic: 1)
        state.pointee.pool.withLock { $0.add(pointer) }
      }
    }
    return tags
  }

  /// Where pages come from, from now on. Its base must be the one that the supply was made with, and
  /// pages of the former source must be at home in the new one.
  public func setSource(_ source: TagSource) {
    precondition(source.base.rawValue == state.pointee.links.base, "links count from another base")
    state.pointee.pool.withLock { $0.source = source }
  }

  /// What the supply has at this moment.
  public var figures: TagFigures {
    state.pointee.pool.withLock {
      TagFigures(
        total: $0.total, free: $0.free, pages: PageCount($0.pages), staticPages: PageCount($0.staticPages),
        hashPages: PageCount($0.hashPages))
    }
  }

  /// Visits each arena that draws on this supply, in the order of creation. None may be destroyed
  /// meanwhile.
  public func forEachArena<E>(_ visit: (Arena) throws(E) -> Void) throws(E) {
    var next = state.pointee.pool.withLock { $0.firstArena }
    while let arena = next {
      try visit(Arena(state: arena))
      next = state.pointee.pool.withLock { _ in arena.pointee.nextArena.address.pointee }
    }
  }

  // MARK: For arenas

  /// Adds a page of tags. False when there is none to be had. No lock is held.
  func grow(_ priority: AllocationPriority) -> Bool {
    guard let page = takePage(priority) else { return false }
    TagPool.prepare(page, state.pointee.links, isStatic: 0)
    state.pointee.pool.withLock { $0.add(page) }
    return true
  }

  /// A page of unknown contents that links can name.
  func takePage(_ priority: AllocationPriority) -> UnsafeMutableRawPointer? {
    assert(holdsNoSpinLock(), "the source of tags is asked with no lock held")
    if state.pointee.machine.failsHere(.vmem) { return nil }
    let source = state.pointee.pool.withLock { $0.source }
    guard let page = source.taking(source.context, priority.rawValue) else { return nil }
    guard state.pointee.links.reaches(pageAt: page) else {
      source.giving(source.context, page)
      return nil
    }
    return page
  }

  func givePage(_ page: UnsafeMutableRawPointer) {
    assert(holdsNoSpinLock(), "the source of tags is asked with no lock held")
    let source = state.pointee.pool.withLock { $0.source }
    source.giving(source.context, page)
  }

  /// Gives back the wholly free pages that nobody will miss. After tags were returned, no lock held.
  func trim() {
    while let page = state.pointee.pool.withLock({ $0.detachSurplus() }) { givePage(page) }
  }

  /// Wakes who waits for space or tags. After something was freed, no lock held.
  @inline(always) func wakeWaiters() {
    if state.pointee.waiters.load(ordering: .sequentiallyConsistent) != 0 { wakeSlow() }
  }
  @inline(never) func wakeSlow() { state.pointee.queue.wake(on: state.pointee.machine) }
}

/// Fields are constants, atomics or locked: nothing here is ever written through `pointee`.
struct TagsState: ~Copyable {
  let links: TagLinks
  let machine: Machine
  let pool: Locked<TagPool>
  /// One queue for all arenas of the supply: space in one may come by a free in its source, tags by a
  /// free in any. Who waits announces it in `waiters` and then looks once more, so that a free, which
  /// reads `waiters` after its own change, either is seen by that look or sees the waiter.
  let queue = WaitQueue("address space", .memory)
  let waiters = Atomic<UInt32>(0)
}

/// The header of a page of tags.
struct TagPage {
  var first: Link
  var free: UInt32
  var previous: Link
  var next: Link
  var isStatic: UInt32
  var unused: (UInt32, UInt32, UInt32)

  static var tags: UInt32 { UInt32(Page.size / 32) - 1 }
}

/// Tags in a row, linked by `next`.
struct TagChain {
  var first: Link
  var count: UInt32
  static var empty: Self { Self(first: .none, count: 0) }
}

/// Plain data under the lock of the supply.
struct TagPool: ~Copyable {
  let links: TagLinks
  var source: TagSource
  /// Pages with a free tag. One that becomes wholly free goes to the end unless it is static, and tags are
  /// taken from the front, so the wholly free ones that can go back are the end of the list.
  var first = Link.none
  var last = Link.none
  var free: UInt64 = 0
  var total: UInt64 = 0
  var pages: UInt64 = 0
  var staticPages: UInt64 = 0
  var hashPages: UInt64 = 0
  /// Wholly free pages that the source could have back.
  var wholePages: UInt64 = 0
  var firstArena: UnsafeMutablePointer<ArenaState>?
  var lastArena: UnsafeMutablePointer<ArenaState>?

  /// Wholly free pages that are kept.
  static var kept: UInt64 { 1 }

  init(_ links: TagLinks, _ source: TagSource) {
    self.links = links
    self.source = source
  }

  @inline(always) func header(_ page: Link) -> UnsafeMutablePointer<TagPage> {
    links.pointer(page).assumingMemoryBound(to: TagPage.self)
  }
  /// The page that holds a tag.
  @inline(always) func page(of tag: Link) -> Link {
    let address = UInt(bitPattern: links.pointer(tag)) & ~UInt(Page.size - 1)
    return links.link(UnsafeMutableRawPointer(bitPattern: address).unsafelyUnwrapped)
  }

  /// Makes a page of unused tags. Needs no lock: nobody knows the page yet.
  static func prepare(_ page: UnsafeMutableRawPointer, _ links: TagLinks, isStatic: UInt32) {
    let header = page.bindMemory(to: TagPage.self, capacity: 1)
    let count = TagPage.tags
    let tags = (page + 32).bindMemory(to: Tag.self, capacity: Int(count))
    let first = links.link(page).rawValue + 1
    for i in 0..<count {
      tags[Int(i)].set(.unused, 0, 0)
      tags[Int(i)].next = i + 1 < count ? Link(first + i + 1) : .none
    }
    header.initialize(
      to: TagPage(
        first: Link(first), free: count, previous: .none, next: .none, isStatic: isStatic, unused: (0, 0, 0)))
  }

  /// Takes in a prepared page.
  mutating func add(_ page: UnsafeMutableRawPointer) {
    let link = links.link(page)
    let isStatic = header(link).pointee.isStatic != 0
    pages += 1
    staticPages += isStatic ? 1 : 0
    wholePages += isStatic ? 0 : 1
    total += UInt64(TagPage.tags)
    free += UInt64(TagPage.tags)
    if isStatic { pushFront(link) } else { pushBack(link) }
  }

  private mutating func pushFront(_ page: Link) {
    header(page).pointee.previous = .none
    header(page).pointee.next = first
    if first == .none { last = page } else { header(first).pointee.previous = page }
    first = page
  }
  private mutating func pushBack(_ page: Link) {
    header(page).pointee.next = .none
    header(page).pointee.previous = last
    if last == .none { first = page } else { header(last).pointee.next = page }
    last = page
  }
  private mutating func remove(_ page: Link) {
    let (previous, next) = (header(page).pointee.previous, header(page).pointee.next)
    if previous == .none { first = next } else { header(previous).pointee.next = next }
    if next == .none { last = previous } else { header(next).pointee.previous = previous }
  }

  /// Up to `count` tags, fewer when there are no more.
  mutating func take(_ count: UInt32) -> TagChain {
    var chain = TagChain.empty
    while chain.count < count, first != .none {
      let page = header(first)
      let tag = page.pointee.first
      page.pointee.first = links[tag].pointee.next
      if page.pointee.free == TagPage.tags, page.pointee.isStatic == 0 { wholePages -= 1 }
      page.pointee.free -= 1
      if page.pointee.free == 0 { remove(first) }
      links[tag].pointee.next = chain.first
      chain.first = tag
      chain.count += 1
    }
    free -= UInt64(chain.count)
    return chain
  }

  mutating func give(_ chain: TagChain) {
    var tag = chain.first
    while tag != .none {
      let next = links[tag].pointee.next
      let page = page(of: tag)
      let header = header(page)
      links[tag].pointee.kind = .unused
      links[tag].pointee.next = header.pointee.first
      header.pointee.first = tag
      header.pointee.free += 1
      if header.pointee.free == 1 { pushFront(page) }
      if header.pointee.free == TagPage.tags, header.pointee.isStatic == 0 {
        wholePages += 1
        remove(page)
        pushBack(page)
      }
      tag = next
    }
    free += UInt64(chain.count)
  }

  /// A wholly free page beyond those that are kept, no longer part of the supply.
  mutating func detachSurplus() -> UnsafeMutableRawPointer? {
    guard wholePages > Self.kept else { return nil }
    let page = last
    remove(page)
    wholePages -= 1
    pages -= 1
    total -= UInt64(TagPage.tags)
    free -= UInt64(TagPage.tags)
    return links.pointer(page)
  }
}
