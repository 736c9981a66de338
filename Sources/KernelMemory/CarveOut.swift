// Memory that a machine has and Strata does not own: cut off the top of the firmware's map before the layers
// come up, for a RAM disk.
//
// It counts as reserved, so it has no frame records and no role, but it lies in the direct map: whoever it
// was cut for reaches it there. The top of memory need not be one extent: where a device window divides
// memory (QEMU's pc with 4 GiB: 3 below the window, 1 above), a large cut takes what is above and goes on
// below. What the image, a module or the loader occupies is passed by.

import MemoryPrimitives
import PhysicalMemory

/// Why so much memory could not be carved out.
@frozen public enum CarveOutError: UInt8, Error, Sendable {
  /// Less than `CarveOut.left` would remain.
  case tooMuch
  /// It would lie in more than `CarveOut.limit` extents.
  case tooScattered

  public var description: StaticString {
    switch self {
    case .tooMuch: "less than 16 MiB would be left"
    case .tooScattered: "the top of memory is in too many extents"
    }
  }
}

/// Runs of frames, the highest first: a plain value, empty at first.
public struct CarveOut: Sendable {
  private var runs: InlineArray<8, FrameRun> = .init(
    repeating: FrameRun(first: FrameNumber(UInt32(0)), count: .zero))
  /// How many runs there are.
  public private(set) var count = 0

  public init() {}

  /// How many runs there can be.
  public static var limit: Int { 8 }
  /// What must remain for a system.
  public static var left: PageCount { ByteCount.mebibytes(16).pagesRoundedUp }
  /// Nothing below this is taken: the image, the loader's records and old devices lie there.
  private static var lowest: UInt32 { UInt32(ByteCount.mebibytes(16).pagesRoundedUp.rawValue) }
  /// An extent shorter than this is passed by when more is asked for: it is not worth a run.
  private static var crumb: UInt64 { ByteCount.mebibytes(1).pagesRoundedUp.rawValue }

  public subscript(index: Int) -> FrameRun {
    precondition(index >= 0 && index < count)
    return runs[index]
  }

  /// The frames of all runs together.
  public var pages: PageCount {
    var sum = PageCount.zero
    for i in 0..<count { sum = sum + runs[i].count }
    return sum
  }

  /// The highest `pages` frames of `map` that are above 16 MiB and that none of `occupied` touches. The
  /// 2 MiB around what is occupied stay with it, or it would be alone there with its frame records.
  ///
  /// Costs a pass over `occupied` for each extent.
  public init(
    top pages: PageCount, of map: MemoryMap, avoiding occupied: UnsafeBufferPointer<OccupiedRange>
  ) throws(CarveOutError) {
    guard pages <= map.frames, map.frames - pages >= Self.left else { throw .tooMuch }
    var missing = pages.rawValue
    for index in stride(from: map.count - 1, through: 0, by: -1) {
      let first = max(Self.lowest, map[index].first.rawValue)
      var end = map[index].end.rawValue
      while missing > 0 && end > first {
        // What is free below `end`, and where to go on below it.
        let (bottom, next) = Self.gap(first, end, occupied)
        let room = UInt64(end - bottom)
        if room >= min(missing, Self.crumb) {
          guard count < Self.limit else { throw .tooScattered }
          let taken = min(room, missing)
          runs[count] = FrameRun(first: FrameNumber(end - UInt32(taken)), count: PageCount(taken))
          count += 1
          missing -= taken
        }
        end = next
      }
    }
    guard missing == 0 else { throw .tooMuch }
  }

  /// Where the frames right below `end` begin that nobody occupies (`end` itself, if somebody has the
  /// last), and where whoever has those below them begins. Neither is below `first`.
  private static func gap(
    _ first: UInt32, _ end: UInt32, _ occupied: UnsafeBufferPointer<OccupiedRange>
  ) -> (bottom: UInt32, next: UInt32) {
    var (bottom, next) = (UInt64(first), UInt64(first))
    for range in occupied where range.length > .zero {
      let (last, wraps) = range.base.rawValue.addingReportingOverflow(range.length.rawValue - 1)
      let from = (range.base.rawValue >> 21) << 9
      let to = wraps ? UInt64(FrameNumber.limit) : (last >> 21 + 1) << 9
      // The one that reaches highest among those that begin below `end`.
      guard from < UInt64(end), to > bottom else { continue }
      bottom = min(to, UInt64(end))
      next = max(from, UInt64(first))
    }
    return (UInt32(bottom), UInt32(next))
  }

  /// A run as the firmware would tell of it.
  func firmwareRange(_ index: Int) -> FirmwareRange {
    FirmwareRange(base: self[index].first.address, length: self[index].count.bytes, kind: .reserved)
  }
}
