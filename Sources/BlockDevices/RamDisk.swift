// A block device over memory: the swap device of a machine that has no disk, and of every test.
//
// It behaves as a disk does. `submit` only queues a request; `poll`, which a thread that sleeps for the device calls,
// carries the oldest one out and notifies its owner. So no request is complete when `submit` returns.
//
// The lock covers the queue. Pages are copied and the request is completed without it, so two processors may poll at
// once, and the owner that is notified may submit and poll again.

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
    let pageCount: PageCount
    let queue: Locked<Queue>
  }

  /// Requests that are not done: under the lock.
  struct Queue {
    var first: BlockRequest?
    var last: BlockRequest?
    /// Requests that are being carried out.
    var running = 0
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
    var pages = PageCount.zero
    for i in 0..<extents.count {
      copy[i] = extents[i]
      pages += extents[i].pages
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
      state.name, pages: state.pageCount, place,
      submitRequest: { RamDisk(at: $0.unsafelyUnwrapped).submit($1) })
  }

  // MARK: Running

  private func submit(_ request: BlockRequest) {
    state.queue.withLock { $0.append(request) }
  }

  /// Carries out the oldest request, and completes it. Returns false when the disk is idle: no request is queued or
  /// being carried out on any processor. No spin lock may be held. A copy of up to 32 pages.
  @discardableResult public func poll() -> Bool {
    switch state.queue.withLock({ $0.next() }) {
    case .idle: return false
    case .waiting: return true
    case .carryOut(let request):
      request.complete(carryOut(request))
      // Only now, because a thread that finds the disk idle must find its own request done.
      state.queue.withLock { $0.running &-= 1 }
      return true
    }
  }

  private func carryOut(_ request: BlockRequest) -> DeviceOutcome {
    guard request.fits(state.pageCount) else { return .failure }
    let count = Int(request.pageCount.rawValue)
    let isWrite = request.operation == .write
    var place = Place(self, request.first)
    for i in 0..<count {
      let frame = state.directMap.pointer(to: request.frame(i))
      if isWrite {
        place.pointer.copyMemory(from: frame, byteCount: Int(Page.size))
      } else {
        frame.copyMemory(from: place.pointer, byteCount: Int(Page.size))
      }
      if i &+ 1 < count { place.advance(self) }
    }
    return .success
  }

  /// The memory of `page`, which is on the disk: for a disk that stands on this one and changes part of a page.
  package func memory(of page: DevicePage) -> UnsafeMutableRawPointer {
    precondition(page.rawValue < state.pageCount.rawValue, "a page beyond a RAM disk")
    return Place(self, page).pointer
  }

  /// The memory of a page of the disk, and the pages from it to the end of its extent.
  private struct Place {
    var pointer: UnsafeMutableRawPointer
    var left: UInt64
    var extent = 0

    init(_ disk: RamDisk, _ page: DevicePage) {
      var rest = page.rawValue
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
}

extension RamDisk.Queue {
  enum Step {
    /// No request is queued or being carried out.
    case idle
    /// A request is being carried out on another processor, and none is queued.
    case waiting
    case carryOut(BlockRequest)
  }

  mutating func append(_ request: BlockRequest) {
    request.next = nil
    if let last { last.next = request } else { first = request }
    last = request
  }

  /// Removes the oldest request from the queue.
  mutating func next() -> Step {
    guard let request = first else { return running == 0 ? .idle : .waiting }
    first = request.next
    if first == nil { last = nil }
    running += 1
    return .carryOut(request)
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension RamDisk: @unchecked Sendable {}
