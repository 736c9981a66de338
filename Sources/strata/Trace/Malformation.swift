// The faults that a line of a recorder's text may have. The summary names each that was met.

/// A reason for which a line is malformed.
enum Malformation: String, Error, CaseIterable {
  case unreadable = "no line of a recorder's text"
  case noPointer = "an allocation event without ptr"
  case noSizes = "an allocation event without bytes_req and bytes_alloc"
  case noFrame = "an allocation event without pfn and order"
  case impossibleFrame = "an event with an impossible frame or order"
  case impossibleSize = "an event with an impossible size"
}

/// The lines of a recording that are malformed for one reason.
struct MalformedLines {
  /// The number of the first.
  let first: UInt64
  /// The beginning of the first, in quotes.
  let text: String
  var count: UInt64 = 0
}
