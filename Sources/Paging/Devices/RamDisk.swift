// A block device over memory: the swap device of a machine that has no disk, and of every test.
//
// It behaves as a disk does. `submit` only queues a request; `poll`, which a thread that sleeps for the
// device calls, carries one out and notifies its owner. So no request is complete when `submit` returns, and
// every fault of a real device can be injected (`DeviceFaults`).
//
// The lock (rank `blockDevice`) covers the queue and the random numbers. Pages are copied and `done` is
// called without it, so two processors may poll at once, and `done` may submit and poll again.
//
// Cost. A request: about 350 instructions and 20 for each page, beside the copy. With faults, a few hundred
// more.

import CPlatform
import MemoryPrimitives

/// A device over up to eight extents of memory: a handle.
public struct RamDisk {
  /// One extent of memory: whole pages, mapped for as long as the disk lives.
  public struct Extent {
    /// The first byte.
    public var start: UnsafeMutableRawPointer
    /// The number of pages.
    public var pages: PageCount
    /// The extent of `pages` pages from `start` on.
    public init(_ start: UnsafeMutableRawPointer, _ pages: PageCount) {
      self.start = start
      self.pages = pages
    }
  }

  struct State: ~Copyable {
    let name: ShortName
    let directMap: DirectMap
    let extents: InlineArray<8, Extent>
    let pageCount: UInt64
    let queue: Locked<Queue>
  }

  /// Requests that are not done, and the faults to inject: under the lock.
  struct Queue {
    var first: BlockRequest?
    var last: BlockRequest?
    /// Requests that are being carried out.
    var running = 0
    /// Calls of `poll` so far that found a request.
    var polls: UInt64 = 0
    var faults = DeviceFaults()
    var hasFaults = false
    var random: UInt64 = 0
    /// Pages that always fail, beside those of `faults`.
    var spoiled: InlineArray<16, UInt64> = .init(repeating: 0)
    var spoiledCount = 0
    var figures = RamDiskFigures()
  }

  /// How one request is carried out.
  struct Fate {
    /// Pages that arrive whole.
    var pages: UInt32
    /// Bytes of the page behind them that arrive.
    var bytes: UInt32 = 0
    var failed = false
    /// The bit of the pages that arrived which flips.
    var flipped: UInt32?
  }

  let storage: UnsafeMutablePointer<State>
  private init(_ storage: UnsafeMutablePointer<State>) { self.storage = storage }

  /// The state, in place.
  @inline(__always) var state: State { unsafeAddress { UnsafePointer(storage) } }

  /// The most extents of memory that a disk can lie in.
  public static var extentLimit: Int { 8 }
  /// Bytes that `create` needs, aligned to 64.
  public static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.stride) }

  /// Creates a disk over `extents`, in their order: 1 to 8, none empty, none overlapping another or the memory that
  /// requests read and write. Their content is the disk's. `memory` is for its state.
  public static func create(
    in memory: UnsafeMutableRawPointer, _ name: ShortName, machine: Machine,
    over extents: UnsafeBufferPointer<Extent>
  ) -> RamDisk {
    precondition(extents.count > 0 && extents.count <= extentLimit, "a RAM disk lies in 1 to 8 extents")
    var copy = InlineArray<8, Extent>(repeating: Extent(extents[0].start, .zero))
    var pages: UInt64 = 0
    for i in 0..<extents.count {
      copy[i] = extents[i]
      pages += extents[i].pages.rawValue
    }
    let storage = memory.bindMemory(to: State.self, capacity: 1)
    storage.initialize(
      to: State(
        name: name, directMap: machine.directMap, extents: copy, pageCount: pages,
        queue: Locked(.blockDevice, Queue())))
    return RamDisk(storage)
  }

  /// Creates a disk over one extent of memory.
  public static func create(
    in memory: UnsafeMutableRawPointer, _ name: ShortName, machine: Machine, over extent: Extent
  ) -> RamDisk {
    withUnsafePointer(to: extent) {
      create(in: memory, name, machine: machine, over: UnsafeBufferPointer(start: $0, count: 1))
    }
  }

  /// The disk whose state lies at `memory`: for a context word.
  package init(at memory: UnsafeMutableRawPointer) { storage = memory.assumingMemoryBound(to: State.self) }
  /// The address of the disk's state.
  package var place: UnsafeMutableRawPointer { UnsafeMutableRawPointer(storage) }

  /// The disk as a block device.
  public var device: BlockDevice {
    BlockDevice(
      state.name, pages: PageCount(state.pageCount), UnsafeMutableRawPointer(storage),
      submit: { RamDisk($0.unsafelyUnwrapped.assumingMemoryBound(to: State.self)).submit($1) })
  }

  // MARK: Running

  private func submit(_ request: BlockRequest) {
    state.queue.withLock { $0.append(request) }
  }

  /// Carries out one request that is due, and calls its `done`. Returns false when the disk is idle: no request is
  /// queued or being carried out on any processor. No spin lock may be held. A copy of up to 32 pages.
  @discardableResult public func poll() -> Bool {
    switch state.queue.withLock({ $0.next(pageCount: state.pageCount) }) {
    case .idle: return false
    case .waiting: return true
    case .carryOut(let request, let fate):
      carryOut(request, fate)
      request.failed = fate.failed
      // The owner may reuse the request during this call.
      request.done.unsafelyUnwrapped(request.context, request)
      // Only now, because a thread that finds the disk idle must find its own request done.
      state.queue.withLock { $0.running &-= 1 }
      return true
    }
  }

  private func carryOut(_ request: BlockRequest, _ fate: Fate) {
    // A request beyond the disk has no place.
    guard fate.pages > 0 || fate.bytes > 0 else { return }
    let frames = UnsafePointer(cp_block_frames(request))
    let isWrite = request.operation == .write
    var place = Place(self, request.first)
    for i in 0..<fate.pages {
      copy(Int(Page.size), place.pointer, frames[Int(i)], isWrite)
      if i &+ 1 < request.count { place.advance(self) }
    }
    if fate.bytes != 0 { copy(Int(fate.bytes), place.pointer, frames[Int(fate.pages)], isWrite) }
    if let flipped = fate.flipped {
      let page = UInt64(flipped >> 15)
      let (byte, mask) = (Int(flipped >> 3 & 4095), UInt8(1) << UInt8(flipped & 7))
      let memory =
        isWrite
        ? Place(self, request.first + page).pointer
        : state.directMap.pointer(to: FrameNumber(frames[Int(page)]))
      (memory + byte).assumingMemoryBound(to: UInt8.self).pointee ^= mask
    }
  }

  @inline(__always)
  private func copy(_ bytes: Int, _ page: UnsafeMutableRawPointer, _ frame: UInt32, _ isWrite: Bool) {
    let memory = state.directMap.pointer(to: FrameNumber(frame))
    if isWrite {
      page.copyMemory(from: memory, byteCount: bytes)
    } else {
      memory.copyMemory(from: page, byteCount: bytes)
    }
  }

  /// The memory of a page of the disk, and the pages from it to the end of its extent.
  private struct Place {
    var pointer: UnsafeMutableRawPointer
    var left: UInt64
    var extent = 0

    init(_ disk: RamDisk, _ page: UInt64) {
      var rest = page
      while rest >= disk.state.extents[extent].pages.rawValue {
        rest &-= disk.state.extents[extent].pages.rawValue
        extent &+= 1
      }
      let found = disk.state.extents[extent]
      pointer = found.start + Int(rest &* Page.size)
      left = found.pages.rawValue &- rest
    }

    /// The next page of the disk, which has one.
    @inline(__always) mutating func advance(_ disk: RamDisk) {
      left &-= 1
      pointer += Int(Page.size)
      if left == 0 {
        extent &+= 1
        let next = disk.state.extents[extent]
        (pointer, left) = (next.start, next.pages.rawValue)
      }
    }
  }

  // MARK: Faults and figures

  /// The faults to inject from now on. Setting them restarts the random numbers from their seed.
  package var faults: DeviceFaults {
    get { state.queue.withLock { $0.faults } }
    nonmutating set { state.queue.withLock { $0.set(newValue) } }
  }

  /// Makes every later request for `page` fail. Up to 16 pages; more are a bug of the test.
  package func spoil(_ page: DevicePage) {
    state.queue.withLock {
      precondition($0.spoiledCount < 16, "a RAM disk keeps 16 spoiled pages")
      $0.spoiled[$0.spoiledCount] = page.rawValue
      $0.spoiledCount += 1
      $0.hasFaults = true
    }
  }

  /// Undoes all calls of `spoil`.
  package func mend() {
    state.queue.withLock {
      $0.spoiledCount = 0
      $0.hasFaults = $0.faults.isAny
    }
  }

  /// Whether requests for `page` always fail, by `spoil` or by `faults.bad`.
  package func isBad(_ page: DevicePage) -> Bool {
    state.queue.withLock { $0.isBad(page.rawValue) }
  }

  /// The counts of the disk since the start.
  package var figures: RamDiskFigures { state.queue.withLock { $0.figures } }
}

extension RamDisk.Queue {
  enum Step {
    /// No request is queued.
    case idle
    /// A request is being carried out elsewhere, or is not due yet.
    case waiting
    case carryOut(BlockRequest, RamDisk.Fate)
  }

  mutating func append(_ request: BlockRequest) {
    request.next = nil
    request.deviceWord = polls
    if hasFaults && strikes(faults.delayed) && faults.longestDelay > 0 {
      request.deviceWord += 1 + below(UInt64(faults.longestDelay))
      figures.delayed += 1
    }
    if let last { last.next = request } else { first = request }
    last = request
  }

  /// Removes the request to carry out now from the queue, and decides its faults.
  mutating func next(pageCount: UInt64) -> Step {
    guard first != nil else { return running == 0 ? .idle : .waiting }
    polls += 1
    guard let request = removeDue() else { return .waiting }
    running += 1
    return .carryOut(request, fate(of: request, pageCount: pageCount))
  }

  private mutating func removeDue() -> BlockRequest? {
    var skipped: UInt64 = 0
    if hasFaults && strikes(faults.reordered) {
      var due: UInt64 = 0
      var at = first
      while let request = at {
        if request.deviceWord < polls { due += 1 }
        at = request.next
      }
      if due > 1 { skipped = below(due) }
      if skipped > 0 { figures.reordered += 1 }
    }
    var previous: BlockRequest?
    var at = first
    while let request = at {
      if request.deviceWord < polls {
        if skipped == 0 {
          if let previous {
            previous.next = request.next
          } else {
            first = request.next
          }
          if last == request { last = previous }
          return request
        }
        skipped -= 1
      }
      previous = request
      at = request.next
    }
    return nil
  }

  private mutating func fate(
    of request: BlockRequest, pageCount: UInt64
  ) -> RamDisk.Fate {
    let (start, count) = (request.first, request.count)
    switch request.operation {
    case .read: figures.reads += 1
    case .write: figures.writes += 1
    }
    figures.pages += UInt64(count)
    var fate = RamDisk.Fate(pages: count)
    guard count > 0, count <= UInt32(CP_BLOCK_PAGES), start <= pageCount, pageCount - start >= count else {
      figures.failed += 1
      fate.pages = 0
      fate.failed = true
      return fate
    }
    guard hasFaults else { return fate }
    for i in 0..<count where isBad(start + UInt64(i)) {
      fate.pages = i
      fate.failed = true
      break
    }
    if !fate.failed && strikes(faults.failed) {
      fate.pages = UInt32(below(UInt64(count) + 1))
      fate.failed = true
    }
    if fate.failed {
      figures.failed += 1
      return fate
    }
    if strikes(faults.torn) {
      fate.pages = UInt32(below(UInt64(count)))
      fate.bytes = UInt32(8 * below(512))
      figures.torn += 1
    }
    if strikes(faults.corrupted) && fate.pages > 0 {
      fate.flipped = UInt32(below(UInt64(fate.pages) * Page.size * 8))
      figures.corrupted += 1
    }
    return fate
  }

  mutating func set(_ new: DeviceFaults) {
    faults = new
    random = new.seed
    hasFaults = new.isAny || spoiledCount > 0
  }

  /// Mutating, because the compiler would otherwise copy the queue to read its array.
  mutating func isBad(_ page: UInt64) -> Bool {
    for i in 0..<spoiledCount where spoiled[i] == page { return true }
    return faults.isBad(page)
  }

  private mutating func strikes(_ rate: PerMille) -> Bool {
    rate != 0 && below(1000) < UInt64(rate.rawValue)
  }

  private mutating func below(_ limit: UInt64) -> UInt64 {
    random &+= 0x9e37_79b9_7f4a_7c15
    return DeviceFaults.mixed(random) % limit
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension RamDisk: @unchecked Sendable {}
