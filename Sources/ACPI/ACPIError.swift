// The reasons for which the firmware's tables can't be read.

/// A flaw of the firmware's tables.
package enum ACPIError: UInt8, Error, CaseIterable, Sendable {
  /// No loader passed a root pointer, and none is where the specification puts it.
  case noRoot
  /// Something else lies where a table should.
  case badSignature
  /// A length that no table of its kind can have.
  case badLength
  /// The bytes do not add up to 0.
  case badChecksum
  /// It lies in part or as a whole where memory may not be accessed.
  case outOfReach
  /// The list has no table with this signature, or there is no list.
  case noSuchTable
  /// An entry that is shorter than its kind, or longer than what is left of its table.
  case malformedEntry
  /// The list of processors does not name the one that reads it.
  case noBootProcessor

  /// The words that a report prints.
  package var description: StaticString {
    switch self {
    case .noRoot: "there is no ACPI root pointer"
    case .badSignature: "something else lies where an ACPI table should"
    case .badLength: "an ACPI table has an impossible length"
    case .badChecksum: "an ACPI table's checksum is wrong"
    case .outOfReach: "an ACPI table lies out of reach"
    case .noSuchTable: "the firmware has no such ACPI table"
    case .malformedEntry: "an ACPI table has a malformed entry"
    case .noBootProcessor: "it leaves out the processor that runs, so it is not used"
    }
  }
}
