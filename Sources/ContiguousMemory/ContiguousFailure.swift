// The reasons to refuse a request for contiguous memory: never, not now, or later.

import MemoryPrimitives
import PhysicalMemory

/// The answer to a request that was refused. A value of fixed size; the request keeps no memory.
public struct ContiguousFailure: Error, Sendable {
  /// Whether the same request can succeed later.
  public enum Answer: UInt8, Sendable {
    /// The request can't succeed on this machine, even if all memory is freed.
    case never
    /// Every run has an obstacle; `blocker` is that of the best one, `run`.
    case notNow
    /// A run could be emptied once `missing` more frames are free, or slots of swap.
    case later
    /// Emptying a run costs more than the request may spend.
    case overBudget
    /// A run was emptied, and there are no addresses or tables to map it; its frames were freed.
    case noAddressSpace
  }

  /// The obstacle that keeps a frame from being emptied.
  public enum Reason: UInt8, Sendable {
    /// No obstacle, or its page is wired, held or busy.
    case none, wired, held, busy
    /// The frame has no pageable page: `role` says what it has.
    case unmovable

    /// The reason, as a part of a sentence.
    public var description: StaticString {
      switch self {
      case .none: "nothing"
      case .wired: "wired"
      case .held: "held"
      case .busy: "busy"
      case .unmovable: "in use by the kernel"
      }
    }
  }

  /// Whether the same request can succeed later.
  public var answer: Answer
  /// The best candidate.
  public var run: FrameRun?
  /// The lowest obstacle of the owner with the most obstacles in `run`.
  public var blocker = FrameNumber.none
  /// The number of that owner's obstacles.
  public var blockerFrames = PageCount.zero
  /// The reason why `blocker` is an obstacle.
  public var reason = Reason.none
  /// The role of `blocker`.
  public var role = FrameRole.absent
  /// The object of `blocker`, or the owner word of its role.
  public var owner: UInt32 = 0
  /// The longest run that could be emptied at this moment.
  public var longest: FrameRun?
  /// Frames or slots of swap that are missing to empty `run`.
  public var missing = PageCount.zero
  /// The failed-request cache refused the request: it failed before, and nothing has changed for it.
  public var isRepeated = false
  /// Fault injection refuses the request before memory is searched.
  package internal(set) var isInjected = false
  /// The forecast of `run`; nil for a request that was refused without a search.
  package var forecast: ContiguousForecast?
  /// The frames from the first obstacle of `run` to the last: no other run that avoids both lies between them.
  var obstacles: FrameRun?

  /// A failure with that answer and no details.
  package init(_ answer: Answer) { self.answer = answer }

  /// The answer of fault injection: the same request succeeds when it is made again.
  static var injected: Self {
    var failure = Self(.later)
    failure.isInjected = true
    return failure
  }

  /// The failure of a request that ends as `forecast` says.
  init(_ forecast: ContiguousForecast) {
    self.init(Answer(forecast.outcome))
    guard answer != .never else { return }
    run = forecast.run
    missing = forecast.missing
    reason = forecast.reason
    self.forecast = forecast
    if let owner = forecast.owners.first {
      (blocker, blockerFrames) = (owner.first, owner.frames)
      (role, self.owner) = (owner.role, owner.owner)
    }
  }

  /// The answer, as a part of a sentence.
  public var description: StaticString { answer.description }
}

extension ContiguousFailure.Answer {
  /// The answer to a request with this forecast; one that was to be granted and is refused may be made again.
  package init(_ outcome: ContiguousForecast.Outcome) {
    self =
      switch outcome {
      case .never: .never
      case .notNow: .notNow
      case .overBudget: .overBudget
      case .later, .granted: .later
      }
  }

  /// The answer, as a part of a sentence.
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
