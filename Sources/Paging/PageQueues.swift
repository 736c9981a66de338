// The queues of pageable pages, linked through their frame records: active, inactive, laundry, unswappable.
//
// Plain data under one lock; each operation is constant. A page that is wired or claimed by somebody who
// decides on it is in none.

import MemoryPrimitives
import PhysicalMemory

/// A queue of pages.
@frozen public enum PageQueue: UInt8, Sendable {
  /// Lately used.
  case active
  /// Not used for a while: the next to be given up.
  case inactive
  /// Not used and dirty: to be written out.
  case laundry
  /// Dirty, and there is no swap to write it to.
  case unswappable

  public static var count: Int { 4 }
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

  /// Puts a page that is in no queue at the end of one.
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

  /// Takes a page out of whatever queue it is in. Answers which.
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

  /// Puts `frame` into the place of `other` in its queue.
  @inline(__always) mutating func replace(_ other: FrameNumber, by frame: FrameNumber) {
    let (from, to) = (record(other), record(frame))
    guard from.isInPageQueue else { return }
    let (next, previous) = (from.next, from.previous)
    if next == .none || previous == .none {
      replaceEnd(from, by: frame)
    }
    if previous != .none { record(previous).next = frame }
    if next != .none { record(next).previous = frame }
    to.takePlace(of: from)
  }

  /// Most pages are at no end of their queue.
  @inline(never) private mutating func replaceEnd(_ from: FrameRecordPointer, by frame: FrameNumber) {
    guard let queue = PageQueue(from.queue) else { return }
    if from.previous == .none { ends[Int(queue.rawValue)].first = frame }
    if from.next == .none { ends[Int(queue.rawValue)].last = frame }
  }

  enum ClaimAnswer { case claimed, refused }

  /// Claims a page that was met in memory and not in a queue. Only what is in a queue is claimed: that is a page
  /// of an object and stays one, as whoever gives it up takes it out of its queue first. A frame that is just
  /// becoming a page, or has just been one, has claims that are not to be touched; and who has taken a page out
  /// of its queue decides where it goes.
  @inline(__always)
  func claim(_ frame: FrameNumber, _ claim: (FrameRecordPointer) -> Bool) -> ClaimAnswer {
    let record = record(frame)
    return record.isInPageQueue && claim(record) ? .claimed : .refused
  }

  /// Takes the first page of a queue that `claim` succeeds for, passing over at most `tries` that it fails
  /// for, which go to the end. Nil when there is none.
  mutating func take(
    _ queue: PageQueue, tries: Int, _ claim: (FrameRecordPointer) -> Bool
  ) -> FrameNumber? {
    for _ in 0..<tries {
      let frame = ends[Int(queue.rawValue)].first
      if frame == .none { return nil }
      remove(frame)
      if claim(record(frame)) { return frame }
      append(frame, queue)
    }
    return nil
  }
}
