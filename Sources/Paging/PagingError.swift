// The errors of paging.

/// An error that a caller can meet in good faith. Nothing was changed, unless the operation says otherwise.
@frozen public enum PagingError: UInt8, Error, Sendable {
  /// No frame is free, and none could be freed; or there is no memory for tables.
  case noMemory
  /// No free range of addresses is large enough.
  case noAddressSpace
  /// The request contradicts itself.
  case badConstraint
  /// No pageable range has the address.
  case notPageable
  /// The range does not allow that access.
  case protection
  /// The device failed to read the page, or to write it.
  case inputOutput
  /// The swap device returned other data than was written.
  case corrupt
  /// A page of the range is wired more often than can be counted.
  case tooManyWires
  /// The page is held more often than can be counted.
  case tooManyHolds

  /// The reason, as a part of a sentence.
  public var description: StaticString {
    switch self {
    case .noMemory: "no memory is free and none can be freed"
    case .noAddressSpace: "no address space"
    case .badConstraint: "the request contradicts itself"
    case .notPageable: "no pageable memory is there"
    case .protection: "the range does not allow it"
    case .inputOutput: "its device failed"
    case .corrupt: "its copy in swap is corrupt"
    case .tooManyWires: "it is wired too often"
    case .tooManyHolds: "it is held too often"
    }
  }
}
