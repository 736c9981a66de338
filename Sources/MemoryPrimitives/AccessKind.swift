// What an instruction wants of memory, as a page fault tells it.

/// An access to memory for data.
@frozen public enum AccessKind: UInt8, Sendable {
  case read
  case write

  public var description: StaticString {
    switch self {
    case .read: "read"
    case .write: "write"
    }
  }
}
