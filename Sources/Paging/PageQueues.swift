// The queues of pageable pages, linked through their frame records: active, inactive, laundry, unswappable.
//
// Plain data under one lock; each operation is constant. A page that is wired, or busy and about to be moved to another
// queue, is in none. The lists are not `IntrusiveList`s, because `replace` must cost few instructions a page of a run.

import MemoryPrimitives
import PhysicalMemory

/// A queue of pages.
@frozen public enum PageQueue: UInt8, Sendable {
  /// Pages that were used recently.
  case active
  /// Pages that were not used for a while: the next to be reclaimed.
  case inactive
  /// Unused dirty pages, to be written out.
  case laundry
  /// Dirty pages for which swap has no free slot.
  case unswappable

  /// The number of queues.
  package static var count: Int { 4 }
  /// The name of the queue.
  public var description: StaticString {
    switch self {
    case .active: "active"
    case .inactive: "inactive"
    case .laundry: "laundry"
    case .unswappable: "unswappable"
    }
  }
  var mark: FrameQueue {
    switch self {
    case .active: .active
    case .inactive: .inactive
    case .laundry: .laundry
    case .unswappable: .unswappable
    }
  }
  init?(_ mark: FrameQueue) {
    switch mark {
    case .active: self = .active
    case .inactive: self = .inactive
    case .laundry: self = .laundry
    case .unswappable: self = .unswappable
    case .none, .buddy, .owner: return nil
    }
  }
}

/// The four queues: plain data under their lock.
struct PageQueues {
  struct Ends {
    var first = FrameNumber.none
    var last = FrameNumber.none
    var count: UInt64 = 0
  }
  let physical: FrameAllocator
  var ends: InlineArray<4, Ends> = .init(repeating: Ends())

  init(_ physical: FrameAllocator) { self.physical = physical }

  @inline(__always) private func record(_ frame: FrameNumber) -> FrameRecordPointer {
    physical.knownRecord(frame)
  }

  func count(_ queue: PageQueue) -> UInt64 { ends[Int(queue.rawValue)].count }
  func first(_ queue: PageQueue) -> FrameNumber { ends[Int(queue.rawValue)].first }

  /// Appends a page that is in no queue to `queue`.
  mutating func append(_ frame: FrameNumber, _ queue: PageQueue) {
    let record = record(frame)
    assert(record.queue == .none)
    let index = Int(queue.rawValue)
    let last = ends[index].last
    record.previous = last
    record.next = .none
    record.queue = queue.mark
    if last == .none { ends[index].first = frame } else { self.record(last).next = frame }
    ends[index].last = frame
    ends[index].count += 1
  }

  /// Removes a page from its queue, if it is in one, and returns which.
  @discardableResult mutating func remove(_ frame: FrameNumber) -> PageQueue? {
    let record = record(frame)
    guard let queue = PageQueue(record.queue) else { return nil }
    let index = Int(queue.rawValue)
    let (next, previous) = (record.next, record.previous)
    if previous == .none { ends[index].first = next } else { self.record(previous).next = next }
    if next == .none { ends[index].last = previous } else { self.record(next).previous = previous }
    record.queue = .none
    record.next = .none
    record.previous = .none
    ends[index].count -= 1
    return queue
  }

  /// Puts `frame` into the position of `other` in its queue.
  @inline(__always) mutating func replace(_ other: FrameNumber, by frame: FrameNumber) {
    let (from, to) = (record(other), record(frame))
    guard from.isInPageQueue else { return }
    let (next, previous) = (from.next, from.previous)
    if next == .none || previous == .none {
      replaceEnd(from, by: frame)
    }
    if previous != .none { record(previous).next = frame }
    if next != .none { record(next).previous = frame }
    to.replace(from)
  }

  /// Makes `frame` an end of the queue. Out of line, because most pages are at no end.
  @inline(never) private mutating func replaceEnd(_ from: FrameRecordPointer, by frame: FrameNumber) {
    guard let queue = PageQueue(from.queue) else { return }
    if from.previous == .none { ends[Int(queue.rawValue)].first = frame }
    if from.next == .none { ends[Int(queue.rawValue)].last = frame }
  }

  enum BusyAnswer { case busied, refused }

  /// Makes a page busy by `makeBusy` that was found by its frame and not in a queue. It must be in a queue: such a page
  /// is an object's and stays one, because a thread that reclaims it removes it from its queue first. The busy word of a
  /// frame that is just becoming a page, or has just been one, belongs to another thread. So does the decision about
  /// the next queue of a page that is in none.
  @inline(__always)
  func tryBusy(_ frame: FrameNumber, _ makeBusy: (FrameRecordPointer) -> Bool) -> BusyAnswer {
    let record = record(frame)
    return record.isInPageQueue && makeBusy(record) ? .busied : .refused
  }

  /// Removes the first page of a queue for which `makeBusy` succeeds, and returns it. Passes over at most `tries` pages
  /// for which it fails; they go to the end. Nil when there is none.
  mutating func popFirst(
    _ queue: PageQueue, tries: Int, _ makeBusy: (FrameRecordPointer) -> Bool
  ) -> FrameNumber? {
    for _ in 0..<tries {
      let frame = ends[Int(queue.rawValue)].first
      if frame == .none { return nil }
      remove(frame)
      if makeBusy(record(frame)) { return frame }
      append(frame, queue)
    }
    return nil
  }
}
