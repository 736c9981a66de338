// How memory behind a mapping is cached, and the one layout of the page attribute table behind it.
//
// Intel SDM vol. 3, 12.12: the register IA32_PAT (0x277) holds eight memory types of a byte each, and
// three bits of a leaf (PWT, PCD, PAT) choose one. Entries 0 to 3 stay as the processor wakes up, so the
// boot's tables mean the same before and after the register is written. Write-combining sits in 6:
// processors that lose the top bit (errata of the Pentium III to M) then read entry 2, UC-, which is
// slow but never wrong.

/// How accesses through a mapping are cached.
@frozen public enum CacheAttribute: UInt8, Sendable {
  /// Ordinary memory.
  case writeBack
  /// Reads are cached, writes go to memory at once.
  case writeThrough
  /// Every access goes to the bus, in order: device registers.
  case uncached
  /// Writes are gathered in a buffer and not ordered: frame buffers, rings that a device reads.
  case writeCombining

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

  /// What an entry of the table means here; UC- (2) behaves as uncached unless an MTRR says otherwise.
  init(index: UInt64) {
    switch index {
    case 0, 4: self = .writeBack
    case 1, 5: self = .writeThrough
    case 6: self = .writeCombining
    default: self = .uncached
    }
  }

  /// What every processor writes to IA32_PAT before it loads these tables: from entry 0 up
  /// WB, WT, UC-, UC, WB, WT, WC, UC.
  public static var tableRegister: UInt64 { 0x0001_0406_0007_0406 }
}

/// What may be done through a mapping. Reading is always allowed.
@frozen public struct Protection: OptionSet, Sendable {
  public let rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  @inlinable public static var writable: Self { Self(rawValue: 1) }
  @inlinable public static var executable: Self { Self(rawValue: 2) }
  /// The same in every address space, so it outlives a change of CR3: all of the kernel.
  @inlinable public static var global: Self { Self(rawValue: 4) }

  /// Kernel memory for data.
  @inlinable public static var kernelData: Self { Self(rawValue: 5) }
  /// Kernel memory that nobody may change.
  @inlinable public static var kernelReadOnly: Self { Self(rawValue: 4) }
  /// Kernel code.
  @inlinable public static var kernelText: Self { Self(rawValue: 6) }
}
