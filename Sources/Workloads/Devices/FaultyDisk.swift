// A RAM disk that fails, tears, corrupts, delays and reorders requests, as a real device may: for self-tests, seeded
// histories and tests.
//
// It stands between a client and the RAM disk, and is a block device itself. It has a queue of its own, for the requests
// that are delayed or overtaken. A request that is to succeed goes on to the RAM disk. One that is to have a fault is
// carried out here, in part, and completed.
//
// The lock covers the queue and the random numbers. As with a RAM disk, two processors may poll at once, and the owner
// that is notified may submit and poll again.

import BlockDevices
import CPlatform
import MemoryPrimitives

/// A RAM disk with faults: a handle.
package struct FaultyDisk {
  struct State: ~Copyable {
    let disk: RamDisk
    let directMap: DirectMap
    let queue: Locked<Queue>
  }

  /// Requests that are not done, and the faults to inject: under the lock.
  struct Queue {
    let pageCount: PageCount
    var first: BlockRequest?
    var last: BlockRequest?
    /// Requests that are being carried out, or are on their way to the RAM disk.
    var running = 0
    /// Calls of `poll` so far that found a request.
    var polls: UInt64 = 0
    var faults = DeviceFaults()
    var hasFaults = false
    var random: UInt64 = 0
    /// Pages that always fail, beside those of `faults`.
    var spoiled: InlineArray<16, UInt64> = .init(repeating: 0)
    var spoiledCount = 0
    var figures = FaultyDiskFigures()
  }

  /// How a request that has a fault is carried out.
  struct Fate {
    /// Pages that arrive whole.
    var pages: Int
    /// Bytes of the page behind them that arrive.
    var bytes = 0
    var outcome = DeviceOutcome.success
    /// The bit of the pages that arrived which flips.
    var flipped: UInt32?
  }

  let storage: UnsafeMutablePointer<State>
  private init(_ storage: UnsafeMutablePointer<State>) { self.storage = storage }

  /// The state, in place.
  @inline(__always) var state: State { unsafeAddress { UnsafePointer(storage) } }

  /// Bytes that `create` needs, aligned to 64.
  package static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.stride) }

  /// Creates a disk that stands on `disk`, to which all requests must come through this one from now on. `memory` is for
  /// its state.
  package static func create(
    in memory: UnsafeMutableRawPointer, over disk: RamDisk, machine: Machine
  ) -> FaultyDisk {
    let storage = memory.bindMemory(to: State.self, capacity: 1)
    storage.initialize(
      to: State(
        disk: disk, directMap: machine.directMap,
        queue: Locked(.blockDevice, Queue(pageCount: disk.device.pageCount))))
    return FaultyDisk(storage)
  }

  /// The disk as a block device.
  package var device: BlockDevice {
    let below = state.disk.device
    return BlockDevice(
      below.name, pages: below.pageCount, UnsafeMutableRawPointer(storage),
      submitRequest: { context, request in
        let disk = FaultyDisk(context.unsafelyUnwrapped.assumingMemoryBound(to: State.self))
        disk.state.queue.withLock { $0.append(request) }
      })
  }

  // MARK: Running

  /// Carries out one request that is due, and completes it. Returns false when the disk is idle: no request is queued
  /// or being carried out on any processor. No spin lock may be held. A copy of up to 32 pages.
  @discardableResult package func poll() -> Bool {
    switch state.queue.withLock({ $0.next() }) {
    case .idle: return state.disk.poll()
    case .waiting: state.disk.poll()
    case .forward(let request):
      state.disk.device.submit(request)
      leave()
      state.disk.poll()
    case .carryOut(let request, let fate):
      carryOut(request, fate)
      request.complete(fate.outcome)
      leave()
    }
    return true
  }

  /// Notes that a request is the RAM disk's, or done. Not before, because a thread that finds the disk idle must find
  /// its own request done.
  private func leave() { state.queue.withLock { $0.running &-= 1 } }

  private func carryOut(_ request: BlockRequest, _ fate: Fate) {
    for page in 0..<fate.pages { copy(page, of: request, Int(Page.size)) }
    if fate.bytes > 0 { copy(fate.pages, of: request, fate.bytes) }
    if let flipped = fate.flipped {
      let (frame, device) = places(Int(flipped >> 15), of: request)
      let target = (request.operation == .write ? device : frame) + Int(flipped >> 3 & 4095)
      let byte = target.load(as: UInt8.self)
      target.storeBytes(of: byte ^ 1 << UInt8(flipped & 7), as: UInt8.self)
    }
  }

  /// Copies the first `bytes` bytes of page `page` of a request.
  private func copy(_ page: Int, of request: BlockRequest, _ bytes: Int) {
    let (frame, device) = places(page, of: request)
    switch request.operation {
    case .read: frame.copyMemory(from: device, byteCount: bytes)
    case .write: device.copyMemory(from: frame, byteCount: bytes)
    }
  }

  /// The memory of the frame and of the device that belong to page `page` of a request.
  private func places(
    _ page: Int, of request: BlockRequest
  ) -> (frame: UnsafeMutableRawPointer, device: UnsafeMutableRawPointer) {
    (
      state.directMap.pointer(to: request.frame(page)),
      state.disk.memory(of: DevicePage(request.first.rawValue + UInt64(page)))
    )
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
      precondition($0.spoiledCount < 16, "a faulty disk keeps 16 spoiled pages")
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
  package var figures: FaultyDiskFigures { state.queue.withLock { $0.figures } }
}

extension FaultyDisk.Queue {
  enum Step {
    /// No request is queued or being carried out here; perhaps the RAM disk has some.
    case idle
    /// A request is being carried out elsewhere, or is not due yet. The RAM disk may have some that are.
    case waiting
    /// To the RAM disk.
    case forward(BlockRequest)
    case carryOut(BlockRequest, FaultyDisk.Fate)
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
  mutating func next() -> Step {
    guard first != nil else { return running == 0 ? .idle : .waiting }
    polls += 1
    guard let request = removeDue() else { return .waiting }
    running += 1
    count(request)
    if let fate = fate(of: request) { return .carryOut(request, fate) }
    return .forward(request)
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

  private mutating func count(_ request: BlockRequest) {
    switch request.operation {
    case .read: figures.reads += 1
    case .write: figures.writes += 1
    }
    figures.pages += request.pageCount.rawValue
  }

  /// Decides how a request is carried out; nil when the RAM disk does it.
  private mutating func fate(of request: BlockRequest) -> FaultyDisk.Fate? {
    guard request.fits(pageCount) else {
      figures.failed += 1
      return nil
    }
    guard hasFaults else { return nil }
    let (start, count) = (request.first.rawValue, request.pageCount.rawValue)
    var fate = FaultyDisk.Fate(pages: Int(count))
    for i in 0..<count where isBad(start + i) {
      fate.pages = Int(i)
      fate.outcome = .failure
      break
    }
    if fate.outcome == .success && strikes(faults.failed) {
      fate.pages = Int(below(count + 1))
      fate.outcome = .failure
    }
    if fate.outcome == .failure {
      figures.failed += 1
      return fate
    }
    var isWhole = true
    if strikes(faults.torn) {
      isWhole = false
      fate.pages = Int(below(count))
      fate.bytes = Int(8 * below(512))
      figures.torn += 1
    }
    if strikes(faults.corrupted) && fate.pages > 0 {
      isWhole = false
      fate.flipped = UInt32(below(UInt64(fate.pages) * Page.size * 8))
      figures.corrupted += 1
    }
    return isWhole ? nil : fate
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
extension FaultyDisk: @unchecked Sendable {}
