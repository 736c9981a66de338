// Why paging could not do what it was asked for, in good faith.

/// What a caller of this layer can meet. Nothing was changed, unless the operation says otherwise.
@frozen public enum PagingError: UInt8, Error, Sendable {
  /// No frame, and none could be freed; or no memory for tables.
  case noMemory
  /// No free range of addresses is large enough.
  case noAddressSpace
  /// The request contradicts itself.
  case badConstraint
  /// No pageable range is there.
  case notPageable
  /// The range does not allow that access.
  case protection
  /// The device failed to read the page, or to write it.
  case inputOutput
  /// What came back from the swap device is not what was written there.
  case corrupt
  /// A page of the range is wired more often than can be counted.
  case tooManyWires
  /// The page is held more often than can be counted.
  case tooManyHolds

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
