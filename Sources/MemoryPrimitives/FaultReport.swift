// Reports of bugs in a caller, with the facts: the mistake, the address, the owner, and both call sites when known.
//
// A report is made before anything was changed, with no lock held. In the kernel it is printed on the console and stops
// the machine. On the host a test receives it, and the operation that reported returns as if it had not been called.

/// A bug of a caller.
@frozen public enum FaultKind: UInt8, Sendable {
  /// The freed memory is free already.
  case doubleFree
  /// The size of a free is not that of the allocation.
  case wrongSize
  /// The type of a free is not that of the allocation.
  case wrongType
  /// The allocator did not allocate what is freed.
  case foreignPointer
  /// The range or frame is not allocated.
  case notAllocated
  /// A page is mapped there already.
  case doubleMap
  /// No page is mapped there.
  case notMapped
  /// A request contradicts itself.
  case badConstraint
  /// Objects of a cache, or values of an arena, outlive it.
  case leak
  /// A write to an object that is free.
  case writeAfterFree
  /// A write behind the end of an object.
  case overrun
  /// A page window is used twice, by a wrong processor, or across a sleep.
  case windowMisuse

  /// The words that a report prints.
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
    case .windowMisuse: "misuse of a page window"
    }
  }
}

/// The facts of one bug. Fields that don't apply keep their defaults.
public struct FaultReport: Sendable {
  /// The kind of the bug.
  public var kind: FaultKind
  /// One clause on the mistake, as in "the object was freed while already free".
  public var what: StaticString
  /// The address, frame or identifier in question, by `place`.
  public var subject: UInt64
  /// The kind of value that `subject` is.
  package var place: Place
  /// The value that the caller gave, in bytes, pages or the unit of `what`.
  public var given: UInt64 = 0
  /// The value that holds, where `given` differs.
  public var expected: UInt64 = 0
  /// The owner of the memory or value: a cache, an arena.
  public var owner: ShortName?
  /// The type of the memory.
  public var type: ShortName?
  /// The call site of the allocation.
  public var allocatedAt: CallSite = .unknown
  /// The call site that opened what is still open.
  public var openedAt: CallSite = .unknown
  /// The call site of the free before.
  public var freedAt: CallSite = .unknown
  /// The call site of the reported call.
  public var reportedAt: CallSite = .unknown

  /// The kinds of value that a fault is about.
  package enum Place: UInt8, Sendable {
    case virtualAddress, physicalAddress, frame, identifier
  }

  /// Calls `body` with the label and the text of each line that says what is wrong, whose it is and who did it. The
  /// kernel and the host print the same lines. `region` describes an address that no layer owns; `place` names a call
  /// site.
  package func forEachLine(
    region: (UInt64) -> Line, place: (CallSite) -> Line, _ body: (StaticString, Line) -> Void
  ) {
    switch self.place {
    case .virtualAddress: body("what", "\(what): \(VirtualAddress(subject))")
    case .physicalAddress: body("what", "\(what): \(PhysicalAddress(subject))")
    case .frame: body("what", "\(what): frame \(subject)")
    case .identifier: body("what", "\(what): \(subject)")
    }
    if given != expected && expected != 0 {
      body("", "given \(count: given), expected \(count: expected)")
    }
    var whose = Line()
    if let owner { whose.append(line: "\(owner)") }
    if let type {
      if whose.count > 0 { whose.append(", ") }
      whose.append(line: "type \(type)")
    }
    if whose.count == 0 { whose = self.place == .virtualAddress ? region(subject) : "not known" }
    body("owner", whose)
    if allocatedAt != .unknown { body("allocated", place(allocatedAt)) }
    if openedAt != .unknown { body("opened", place(openedAt)) }
    if freedAt != .unknown { body("freed", place(freedAt)) }
    guard reportedAt != .unknown else { return }
    body(kind == .doubleFree && freedAt != .unknown ? "and again" : "called", place(reportedAt))
  }

  /// Makes a report; the other fields keep their defaults.
  package init(_ kind: FaultKind, _ what: StaticString, _ subject: UInt64, _ place: Place) {
    self.kind = kind
    self.what = what
    self.subject = subject
    self.place = place
  }
}
