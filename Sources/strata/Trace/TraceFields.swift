// The `key=value` part of an event.
//
// A value stands right behind the equals sign, with two exceptions of old kernels and of raw fields: a null pointer is
// padded with blanks to the width of a pointer, and a number may be followed by its decimal form in parentheses.

import Workloads

/// The fields of an event.
struct TraceFields {
  /// A pointer, as a recorder prints it.
  enum Pointer: Equatable {
    case null
    /// `(____ptrval____)`: the kernel had no key yet to hash pointers with.
    case hidden
    /// Its printed value, which the kernel may have hashed.
    case at(UInt64)
  }

  private let bytes: Text

  /// The fields in the rest of a line.
  init(_ bytes: Text) { self.bytes = bytes }

  /// The text behind `key=`, blanks left out, up to the next blank.
  func text(_ key: StaticString) -> Text? {
    var rest = bytes
    let length = key.utf8CodeUnitCount
    while let word = rest.popWord() {
      guard word.count > length, word[word.startIndex + length] == UInt8(ascii: "="),
        word.prefix(length) == key
      else { continue }
      let value = word.dropFirst(length + 1)
      guard value.isEmpty else { return value }
      guard let next = rest.popWord(), next.first("=") == nil else { return nil }
      return next
    }
    return nil
  }

  /// Whether any field is one that only an event of an allocation or a free has.
  var isAllocation: Bool { text("ptr") != nil || text("pfn") != nil || text("gfp_flags") != nil }

  /// A number: `4096` or `0x1000`.
  func number(_ key: StaticString) -> UInt64? { text(key)?.number }

  /// A pointer, with `0x` or without.
  func pointer(_ key: StaticString) -> Pointer? {
    guard let text = text(key) else { return nil }
    if text == "(null)" || text == "(nil)" || text == "NULL" || text == "null" { return .null }
    if text.ends(with: "ptrval)") || text.ends(with: "ptrval____)") { return .hidden }
    guard let value = text.starts(with: "0x") ? text.number : text.hexadecimal else { return nil }
    return value == 0 ? .null : .at(value)
  }

  /// The frame of an event about pages; nil for a request that failed. Raw fields have no page and a frame of all
  /// ones then. Frame 0 is never allocated: the kernel prints it in place of none.
  var frame: Result<UInt64?, MissingField> {
    let page = pointer("page")
    if page == .null { return .success(nil) }
    guard let frame = number("pfn") else { return .failure(MissingField()) }
    if frame == .max || (frame == 0 && page == nil) { return .success(nil) }
    return .success(frame)
  }

  /// An event has no field that it needs.
  struct MissingField: Error {}

  /// The flags of a request that matter here, by their names or as a number, and by `migratetype` for frames.
  var flags: (TraceFlags, TraceAddressLimit) {
    var found = AllocationFlags(text("gfp_flags") ?? bytes.prefix(0))
    if number("migratetype") == 1 { found.flags.insert(.movable) }
    return (found.flags, found.limit)
  }
}
