// The carve-out: memory that the machine has and Strata does not own, from the top of the firmware's map. A RAM disk
// gets it before the layers come up.
//
// It counts as reserved, so it has no frame records and no role. But it lies in the direct map, where its user reaches
// it. The top of memory need not be one extent. Where a device window divides memory (QEMU's pc with 4 GiB: 3 below the
// window, 1 above), a large carve-out takes all that is above, and the rest from below. Memory that the image, a module
// or the loader occupies is skipped.

import MemoryPrimitives
import PhysicalMemory

/// Why a carve-out failed.
@frozen public enum CarveOutError: UInt8, Error, Sendable {
  /// Less than `CarveOut.left` would remain.
  case tooMuch
  /// It would lie in more than `CarveOut.limit` extents.
  case tooScattered

  /// The reason, as the console prints it.
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
  /// The number of runs.
  public private(set) var count = 0

  /// Creates an empty carve-out.
  public init() {}

  /// The most runs that it can have.
  public static var limit: Int { 8 }
  /// The memory that must remain for a system.
  package static var left: PageCount { ByteCount.mebibytes(16).pagesRoundedUp }
  /// No memory below this is carved out: the image, the loader's records and old devices lie there.
  private static var lowest: UInt32 { UInt32(ByteCount.mebibytes(16).pagesRoundedUp.rawValue) }
  /// An extent shorter than this is skipped when more is requested: it is not worth a run.
  private static var shortest: UInt64 { ByteCount.mebibytes(1).pagesRoundedUp.rawValue }

  /// A run by its number, the highest first.
  public subscript(index: Int) -> FrameRun {
    precondition(index >= 0 && index < count)
    return runs[index]
  }

  /// The frames of all runs together.
  public var pages: PageCount {
    var sum = PageCount.zero
    for i in 0..<count { sum += runs[i].count }
    return sum
  }

  /// Carves out the highest `pages` frames of `map` that are above 16 MiB and that none of `occupied` touches. The
  /// 2 MiB around an occupied range stay in the map; otherwise that range would be alone there with its frame records.
  ///
  /// Throws `tooMuch` or `tooScattered`. Costs a pass over `occupied` for each extent.
  public init(
    top pages: PageCount, of map: MemoryMap, avoiding occupied: UnsafeBufferPointer<OccupiedRange>
  ) throws(CarveOutError) {
    guard pages <= map.frames, map.frames - pages >= Self.left else { throw .tooMuch }
    var missing = pages.rawValue
    for index in stride(from: map.count - 1, through: 0, by: -1) {
      let first = max(Self.lowest, map[index].first.rawValue)
      var end = map[index].end.rawValue
      while missing > 0 && end > first {
        // The gap below `end`, and the end of the next one.
        let (bottom, next) = Self.gap(first, end, occupied)
        let length = UInt64(end - bottom)
        if length >= min(missing, Self.shortest) {
          guard count < Self.limit else { throw .tooScattered }
          let taken = min(length, missing)
          runs[count] = FrameRun(first: FrameNumber(end - UInt32(taken)), count: PageCount(taken))
          count += 1
          missing -= taken
        }
        end = next
      }
    }
    guard missing == 0 else { throw .tooMuch }
  }

  /// The first of the frames right below `end` that are not occupied (`end` itself, if the last one is), and the first
  /// frame of the occupied range below them. Neither is below `first`.
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

  /// A run as a reserved range of the firmware's map.
  func firmwareRange(_ index: Int) -> FirmwareRange {
    FirmwareRange(base: self[index].first.address, length: self[index].count.bytes, kind: .reserved)
  }
}
