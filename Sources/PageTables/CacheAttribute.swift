// How memory behind a mapping is cached, and the one layout of the page attribute table behind it.
//
// Intel SDM vol. 3, 12.12: the register IA32_PAT (0x277) holds eight memory types of a byte each, and
// three bits of a leaf (PWT, PCD, PAT) choose one. Entries 0 to 3 keep their values after reset, so the
// boot's tables mean the same before and after the register is written. Write-combining sits in 6:
// processors that lose the top bit (errata of the Pentium III to M) then read entry 2, UC-, which is
// slow but never wrong.

/// How accesses through a mapping are cached.
@frozen public enum CacheAttribute: UInt8, Sendable {
  /// Ordinary memory.
  case writeBack
  /// Reads are cached, writes go to memory at once.
  case writeThrough
  /// Every access reaches the bus, in order: device registers.
  case uncached
  /// Writes are gathered in a buffer and not ordered: frame buffers, rings that a device reads.
  case writeCombining

  /// The name of the attribute, as the console prints it.
  public var description: StaticString {
    switch self {
    case .writeBack: "write-back"
    case .writeThrough: "write-through"
    case .uncached: "uncached"
    case .writeCombining: "write-combining"
    }
  }

  /// The entry of the page attribute table that holds this type.
  var index: UInt64 {
    switch self {
    case .writeBack: 0
    case .writeThrough: 1
    case .uncached: 3
    case .writeCombining: 6
    }
  }

  /// The type that an entry of the table stands for; UC- (2) behaves as uncached unless an MTRR says otherwise.
  init(index: UInt64) {
    switch index {
    case 0, 4: self = .writeBack
    case 1, 5: self = .writeThrough
    case 6: self = .writeCombining
    default: self = .uncached
    }
  }

  /// The value that every processor writes to IA32_PAT before it loads these tables: from entry 0 up
  /// WB, WT, UC-, UC, WB, WT, WC, UC.
  public static var tableRegister: UInt64 { 0x0001_0406_0007_0406 }
}
