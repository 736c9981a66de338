// What only a bug can cause, told in facts: what, where, whose, and both call sites when known.
//
// A report is made before anything was changed, with no lock held. In the kernel it ends on the console
// and stops the machine; on the host a test receives it, and the operation that reported returns as if
// it had not been called.

/// A bug of a caller.
@frozen public enum FaultKind: UInt8, Sendable {
  case doubleFree
  case wrongSize
  case wrongType
  case foreignPointer
  case notAllocated
  case doubleMap
  case notMapped
  case badConstraint
  case leak
  case writeAfterFree
  /// A write behind the end of an object.
  case overrun

  public var description: StaticString {
    switch self {
    case .doubleFree: "double free"
    case .wrongSize: "wrong size"
    case .wrongType: "wrong type"
    case .foreignPointer: "foreign pointer"
    case .notAllocated: "not allocated"
    case .doubleMap: "double map"
    case .notMapped: "not mapped"
    case .badConstraint: "bad constraint"
    case .leak: "leak"
    case .writeAfterFree: "write after free"
    case .overrun: "overrun"
    }
  }
}

/// The facts of one bug. Fields that don't apply keep their defaults.
public struct FaultReport: Sendable {
  public var kind: FaultKind
  /// One clause on what was asked, as in "the object was freed while already free".
  public var what: StaticString
  /// The address, frame or identifier in question, by `place`.
  public var subject: UInt64
  public var place: Place
  /// Bytes, pages or whatever `what` speaks of: what the caller said and what holds.
  public var given: UInt64 = 0
  public var expected: UInt64 = 0
  /// Who keeps the thing: a cache, an arena.
  public var owner: Name?
  public var type: Name?
  public var allocatedAt: CallSite = .unknown
  public var freedAt: CallSite = .unknown
  public var reportedAt: CallSite = .unknown

  public enum Place: UInt8, Sendable {
    case virtualAddress, physicalAddress, frame, identifier
  }

  public init(_ kind: FaultKind, _ what: StaticString, _ subject: UInt64, _ place: Place) {
    self.kind = kind
    self.what = what
    self.subject = subject
    self.place = place
  }
}
