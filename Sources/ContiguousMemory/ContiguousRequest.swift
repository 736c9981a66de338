// Requests for contiguous memory, and the steps that their observer sees.

import MemoryPrimitives
import Paging
import PhysicalMemory

/// The strategy of contigmalloc.
@frozen public enum ContiguousStrategy: UInt8, Sendable {
  /// Launders whole queues until a run happens to be free, as before 2004.
  case old
  /// Empties one run.
  case new
}

/// How far a request goes. Each pass includes the ones before it.
@frozen public enum ContiguousPass: UInt8, Sendable {
  /// Free and cached pages only.
  case free = 1
  /// Pages are moved.
  case relocate
  /// Inactive pages are written out.
  case launderInactive
  /// All pages are written out.
  case launderActive

  /// The name of the pass.
  public var description: StaticString {
    switch self {
    case .free: "free and cached"
    case .relocate: "relocate"
    case .launderInactive: "launder inactive"
    case .launderActive: "launder active"
    }
  }
}

/// The most that a request may move and write, in pages.
public struct ContiguousBudget: Sendable {
  /// Pages that may be moved.
  public var moved: PageCount
  /// Pages that may be written.
  public var written: PageCount
  /// A budget of `moved` and `written` pages.
  public init(moved: PageCount, written: PageCount) {
    self.moved = moved
    self.written = written
  }
  /// A budget without a bound.
  public static var unlimited: Self { Self(moved: PageCount(UInt64.max), written: PageCount(UInt64.max)) }
}

/// A request for a run of frames.
public struct ContiguousRequest: Sendable {
  /// Frames of the run.
  public var count: PageCount
  /// Where the run may lie.
  public var constraints = RunConstraints()
  /// How far down the reserve the request may reach.
  public var priority = AllocationPriority.normal
  /// Whether the request may sleep.
  public var waitPolicy = WaitPolicy.allowed
  /// The last pass that the request may reach.
  public var passes = ContiguousPass.launderActive
  /// The most that the request may move and write.
  public var budget = ContiguousBudget.unlimited
  /// The requester, for the log of failures.
  public var requester = ShortName("contiguous")
  /// The owner of the frames.
  public var owner: FrameOwner

  /// A request for `count` frames that may sleep, go through all passes and spend without a bound.
  public init(
    _ count: PageCount, where constraints: RunConstraints = RunConstraints(),
    for owner: FrameOwner = FrameOwner("contiguous memory")
  ) {
    self.count = count
    self.owner = owner
    self.constraints = constraints
  }
}

/// The result of one pass over a run, in pages.
public struct PassReport: Sendable {
  /// The pass.
  public var pass: ContiguousPass
  /// Frames of the run captured so far.
  public var captured = PageCount.zero
  /// Pages that were moved.
  public var moved = PageCount.zero
  /// Pages that were written.
  public var written = PageCount.zero
  /// Pages that were wired, held or busy, or that a thread wrote to during the pass.
  public var refused = PageCount.zero

  /// The report of a pass that has done nothing yet.
  package init(_ pass: ContiguousPass) { self.pass = pass }
}

/// A step of a request, for its observer. The observer is called with no lock held.
public enum ContiguousEvent: Sendable {
  /// The buddy queues had the run.
  case foundFree(FrameRun)
  /// The run that is to be emptied.
  case candidate(RunCandidate)
  /// The run was isolated.
  case isolated(FrameRun)
  /// A pass over the run has ended.
  case pass(PassReport)
  /// The page daemon was asked to free pages elsewhere.
  case fetched(DaemonOutcome)
  /// The run could not be emptied; its captured frames were freed.
  case abandoned(FrameRun, ContiguousFailure.Reason, FrameNumber)
  /// A queue was laundered, by the strategy before 2004.
  case laundered(PageQueue, LaunderOutcome)
}

extension ContiguousPass: Comparable {
  @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}
