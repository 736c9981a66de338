// The search for a run that is not free but can be emptied, and its cost.
//
// A frame can be emptied when it is free, or a page without a wire. A page that is busy or held at this moment counts
// as such a page, but costs more. All other frames are *unmovable*.
//
// The search takes no lock. It reads the counts of pageblocks and the last eight bytes of valid records as they are at
// that moment. A candidate is a hint, which isolation tests. When nothing else runs it is exact: there is a candidate
// whenever any allowed run has no unmovable frame.
//
// There are two walks, from the top down, so that low memory is spared:
//   whole pageblocks   a run of whole pageblocks at the start of a pageblock is weighed by the counts of its pageblocks
//                      alone. A window slides over them: a step a pageblock, and no record is read.
//   extents            any other run lies in an *extent*, a maximal row of frames without an unmovable one. A pageblock
//                      without unmovable frames is a step. Of a pageblock with some, the end that touches the current
//                      extent is read only if the two together could hold the run. Its inside is read only if it has
//                      enough frames for the run.
// The search weighs starts by the counts of pageblocks and keeps the four cheapest. It then reads the frames of these one
// by one, a pageblock's length to either side. So the cost is exact, unless the counts make the best start look dearer
// than four others.
//
// The caller defines the price of a run (`RunPricing`): it may exceed the request's budget. When none of the four starts
// is affordable, a window slides over the frames of the extents, past the runs that a lower bound rules out. Then
// there is a candidate whenever any run is affordable.

import MemoryPrimitives
import PhysicalMemory

/// A run that could be emptied, and its contents.
public struct RunCandidate: Equatable, Sendable {
  /// The frames of the run.
  public var run: FrameRun
  /// Frames without work.
  public var free = PageCount.zero
  /// Pages to be moved or written.
  public var movable = PageCount.zero
  /// Those of them that are dirty.
  public var dirty = PageCount.zero
  /// Frames that can't be emptied: none in a candidate that was found.
  public var unmovable = PageCount.zero
}

extension RunCandidate {
  /// A candidate of which only the run is known.
  init(_ run: FrameRun) { self.run = run }
}

/// Runs that a search leaves out, because they were tried: the last four.
struct ExcludedRuns {
  var runs: InlineArray<4, FrameRun> = .init(
    repeating: FrameRun(first: FrameNumber(0), count: .zero))
  var next = 0

  /// No runs.
  init() {}

  /// Leaves `run` out: no frame of it will be in a candidate. A fifth run replaces the first.
  mutating func add(_ run: FrameRun) {
    runs[next & 3] = run
    next += 1
  }

  /// Parts that a range is cut into at most: one more than there are runs.
  static var parts: Int { 5 }

  /// Part `i` of the range without the excluded runs, from the top down.
  func part(_ i: Int, of range: FrameSpan) -> FrameSpan? {
    var end = range.end
    if i > 0 && next == 0 { return nil }
    var rest = i
    while true {
      // The highest excluded run that begins below `end`.
      var cut: FrameSpan?
      for k in runs.indices where runs[k].count > .zero {
        let run = runs[k]
        let runEnd = UInt32(min(UInt64(UInt32.max), UInt64(run.first.rawValue) + run.count.rawValue))
        let first = run.first.rawValue
        guard first < end, runEnd > range.first else { continue }
        if cut.map({ min(end, runEnd) > $0.end }) ?? true {
          cut = FrameSpan(first: first, end: min(end, runEnd))
        }
      }
      let first = max(range.first, cut?.end ?? range.first)
      if rest == 0 { return first < end ? FrameSpan(first: first, end: end) : nil }
      guard let cut, cut.first > range.first else { return nil }
      end = cut.first
      rest -= 1
    }
  }
}

/// Searches for runs to be emptied, and the steps that they have taken. Takes no lock.
struct RunSearch {
  let physical: FrameAllocator
  /// Steps so far: a step reads the counts of a pageblock, or a few records.
  var steps: UInt64 = 0

  var table: FrameTable { physical.table }

  init(_ physical: FrameAllocator) { self.physical = physical }

  /// The result of a search.
  enum Answer {
    /// The cheapest run to empty.
    case found(RunCandidate)
    /// Every run has frames that can't be emptied, or was tried: the run with the fewest of them.
    case blocked(RunCandidate)
    /// No run, whatever is freed.
    case never
  }

  /// Finds the cheapest run that satisfies `where` and has no frame of the runs in `excluding`, by the prices of `pricing`:
  /// a run without unmovable frames before any with some, whatever its price. Where no start that counts have led to can be emptied, and another might, the search compares all runs in the
  /// range, except those that the prices rule out: whether one can be emptied is exact. Costs: see the head of
  /// RunSearch.swift; for a run of whole pageblocks a step for each pageblock in the range.
  mutating func candidate<Pricing: RunPricing>(
    run count: PageCount, where constraints: RunConstraints, excluding: ExcludedRuns, at pricing: Pricing
  ) -> Answer {
    guard let request = RunRequest(count, constraints) else { return .never }
    var search = CandidateSearch(request, table, pricing)
    let found = search.candidate(excluding)
    steps += search.steps
    if let found {
      let candidate = table.describe(found.start, found.start + UInt64(request.count))
      // Frames may have become unmovable since.
      return candidate.unmovable == .zero ? .found(candidate) : .blocked(candidate)
    }
    var blocked = CandidateSearch(request, table, PagesInTheWay())
    let start = blocked.leastBlocked(in: physical, excluding)
    steps += blocked.steps
    guard let start else { return .never }
    return .blocked(table.describe(start, start + UInt64(request.count)))
  }

  /// Finds the longest run that could be emptied, free frames included; nil when every frame is unmovable. A step a
  /// pageblock, and a read of the frames of a pageblock that could have a longer one.
  mutating func longestEmptiableRun(
    low: PhysicalAddress = PhysicalAddress(0), high: PhysicalAddress = PhysicalAddress(UInt64.max)
  ) -> FrameRun? {
    guard let request = RunRequest(.one, RunConstraints(low: low, high: high)) else { return nil }
    var best: FrameRun?
    var search = ExtentSearch(request, table)
    search.forEachExtent(from: UInt64(request.low), to: UInt64(request.high)) { first, end in
      best = FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first))
      return end - first + 1
    }
    steps += search.steps
    return best
  }
}
