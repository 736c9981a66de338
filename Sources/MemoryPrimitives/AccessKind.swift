// The kind of an access to memory, as a page fault reports it.

/// An access to memory for data.
@frozen public enum AccessKind: UInt8, Sendable {
  /// A load.
  case read
  /// A store.
  case write

  /// The word that a report prints.
  public var description: StaticString {
    switch self {
    case .read: "read"
    case .write: "write"
    }
  }
}
