// Why a request for contiguous memory is refused: never, not now, or later.

import MemoryPrimitives
import PhysicalMemory

/// The answer to a request that was refused. A value of fixed size; nothing was kept.
public struct ContiguousFailure: Error, Sendable {
  public enum Answer: UInt8, Sendable {
    /// Not on this machine, whatever is freed.
    case never
    /// Something stands in the way of every run: `blocker` of the best one, `run`.
    case notNow
    /// A run could be emptied, but `missing` more frames must be free, or have room in swap, first.
    case later
    /// The request may not spend what it would take.
    case overBudget
    /// A run was emptied, and there are no addresses or tables to map it; its frames went back.
    case noAddressSpace
  }

  /// What keeps a frame from being emptied.
  public enum Reason: UInt8, Sendable {
    case none, wired, held, busy
    /// It is no pageable page: `role` tells what it is.
    case fixed

    public var description: StaticString {
      switch self {
      case .none: "nothing"
      case .wired: "wired"
      case .held: "held"
      case .busy: "busy"
      case .fixed: "in use by the kernel"
      }
    }
  }

  public var answer: Answer
  /// The best candidate.
  public var run: FrameRun?
  /// The lowest frame in its way of the owner who has most of them, and how many those are.
  public var blocker = FrameNumber.none
  public var blockerFrames = PageCount.zero
  public var reason = Reason.none
  public var role = FrameRole.absent
  /// The blocker's object, or whatever its role keeps there.
  public var owner: UInt32 = 0
  /// The longest run that could be had as things are.
  public var longest: FrameRun?
  public var missing = PageCount.zero
  /// Refused from memory: the same request was hopeless before, and nothing has changed for it.
  public var isRepeated = false
  /// Fault injection refuses the request before memory is searched.
  public internal(set) var isInjected = false
  /// What the counts said of `run`; nil for a request that was refused without a look.
  public var forecast: ContiguousForecast?
  /// From the first frame that was in the way of `run` to the last: no other run that avoids both lies in between.
  var obstacles: FrameRun?

  public init(_ answer: Answer) { self.answer = answer }

  /// The answer of fault injection: the same request succeeds when it is made again.
  static var injected: Self {
    var failure = Self(.later)
    failure.isInjected = true
    return failure
  }

  public var description: StaticString { answer.description }
}

extension ContiguousFailure.Answer {
  /// How a request ends whose forecast is this; one that was to be granted and is refused may be asked again.
  public init(_ outcome: ContiguousForecast.Outcome) {
    self =
      switch outcome {
      case .never: .never
      case .notNow: .notNow
      case .overBudget: .overBudget
      case .later, .granted: .later
      }
  }

  public var description: StaticString {
    switch self {
    case .never: "never on this machine"
    case .notNow: "not now"
    case .later: "later"
    case .overBudget: "over budget"
    case .noAddressSpace: "no address space"
    }
  }
}
