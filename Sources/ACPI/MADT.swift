// The processors that the firmware names: the Multiple APIC Description Table.
//
// ACPI 6.4, 5.2.12. Behind the header follow the physical address of the local interrupt controllers (which
// IA32_APIC_BASE gives as well), flags, and from 44 on entries of (type, length, contents). Two kinds matter here:
//   0  local APIC (5.2.12.2): identity of 8 bits at 3, flags at 4
//   9  local x2APIC (5.2.12.12): identity of 32 bits at 4, flags at 8
// All others are skipped; a later revision may add to the end of an entry, so longer ones are fine.
//
// A processor may be named by both kinds, and firmware that fills up a table of fixed size names absent ones with any
// identity. So each identity counts once, with the best state that an entry gives it. That is why the visits go by
// state, and in the order of the table within one (the boot processor first, 5.2.12.1).
//
// An identity of all ones, in the width of its entry, is that of no processor: a message to it goes to all of them
// (Intel SDM vol. 3A, 11.6.2.1 and 11.12.9). Firmware fills up a table with such entries, enabled ones too.
//
// Cost: three passes, and for identities from 256 on one more for each of them.

import MemoryPrimitives

/// The number by which interrupts find a processor: its local APIC's.
package struct APICIdentity: Equatable, Sendable {
  /// The identity as a number.
  package let rawValue: UInt32
  /// Makes an identity of its number.
  package init(_ rawValue: UInt32) { self.rawValue = rawValue }

  /// The mode of the local APIC that an interrupt to the processor requires.
  package enum Addressing: UInt8, Sendable {
    /// The 8 bits of an xAPIC.
    case xAPIC
    /// The registers of an x2APIC: an xAPIC can't reach the processor, because there 255 means all processors.
    case x2APIC
  }
  /// The mode that an interrupt to the processor requires.
  package var addressing: Addressing { rawValue < 255 ? .xAPIC : .x2APIC }
}

/// A processor as the firmware describes it.
package struct LocalProcessor: Equatable, Sendable {
  /// Whether the processor can be started.
  package enum State: UInt8, CaseIterable, Sendable {
    /// Present, and ready to be started.
    case enabled
    /// Absent now; may be added while the system runs.
    case onlineCapable
    /// Not usable.
    case disabled
  }
  /// The identity of its local APIC.
  package let identity: APICIdentity
  /// Whether it can be started.
  package let state: State
}

/// The interrupt controllers and processors of the machine.
package struct MADT {
  /// `malformedEntry` when such an entry ended the walk: the processors before it are visited, those after it are lost.
  package let flaw: ACPIError?
  private let bytes: PhysicalBytes

  /// The longest table: 16 thousand processors. Keeps the passes over a damaged one short.
  private static var longest: Int { 256 << 10 }

  /// Reads the table. Throws the flaw that makes it unusable.
  package init(_ tables: ACPITables) throws(ACPIError) {
    bytes = try tables.find(.madt).bytes
    guard bytes.count >= Entry.first, bytes.count <= Self.longest else { throw .badLength }
    var offset = Entry.first
    while let entry = Entry(at: offset, of: bytes) { offset += entry.length }
    flaw = offset == bytes.count ? nil : .malformedEntry
  }

  /// Calls `body` with every processor: those that are enabled, then the others. Look at `flaw` to know
  /// whether these are all.
  package func forEachProcessor<E>(_ body: (LocalProcessor) throws(E) -> Void) throws(E) {
    var met = Met()
    try visit(.enabled, &met, body)
    try visit(.onlineCapable, &met, body)
    try visit(.disabled, &met, body)
  }

  // MARK: The walk

  private struct Entry {
    enum Kind { case local, local2, other }
    let type: Kind
    let length: Int

    /// Offset of the first one.
    static var first: Int { 44 }

    /// The entry at `offset`; nil where there is none, or it is malformed.
    init?(at offset: Int, of bytes: PhysicalBytes) {
      guard let type = bytes.load(at: offset, as: UInt8.self),
        let length = bytes.load(at: offset + 1, as: UInt8.self)
      else { return nil }
      let least: UInt8
      switch type {
      case 0: (self.type, least) = (.local, 8)
      case 5: (self.type, least) = (.other, 12)
      case 9: (self.type, least) = (.local2, 16)
      default: (self.type, least) = (.other, 2)
      }
      self.length = Int(length)
      guard length >= least, self.length <= bytes.count - offset else { return nil }
    }
  }

  /// Identities below 256 that were visited. Larger ones are looked up in the table itself.
  private struct Met {
    private var words: InlineArray<4, UInt64> = .init(repeating: 0)

    /// Inserts `identity`. Answers whether it is new; nil for one that does not fit.
    mutating func insert(_ identity: APICIdentity) -> Bool? {
      guard identity.rawValue < 256 else { return nil }
      let (word, bit) = (Int(identity.rawValue >> 6), UInt64(1) << UInt64(identity.rawValue & 63))
      guard words[word] & bit == 0 else { return false }
      words[word] |= bit
      return true
    }
  }

  private func visit<E>(
    _ state: LocalProcessor.State, _ met: inout Met, _ body: (LocalProcessor) throws(E) -> Void
  ) throws(E) {
    var offset = Entry.first
    while let entry = Entry(at: offset, of: bytes) {
      if let processor = processor(entry, at: offset), processor.state == state,
        met.insert(processor.identity) ?? isBest(processor, at: offset)
      {
        try body(processor)
      }
      offset += entry.length
    }
  }

  /// Whether no entry gives the processor at `position` a better state, and no earlier one the same.
  private func isBest(_ processor: LocalProcessor, at position: Int) -> Bool {
    var offset = Entry.first
    while let entry = Entry(at: offset, of: bytes) {
      if let other = self.processor(entry, at: offset), other.identity == processor.identity {
        let (theirs, ours) = (other.state.rawValue, processor.state.rawValue)
        if theirs < ours || theirs == ours && offset < position { return false }
      }
      offset += entry.length
    }
    return true
  }

  /// Reads the processor that an entry names; nil if it names none.
  private func processor(_ entry: Entry, at offset: Int) -> LocalProcessor? {
    let (identity, flags, broadcast): (UInt32?, UInt32?, UInt32)
    switch entry.type {
    case .local:
      identity = bytes.load(at: offset + 3, as: UInt8.self).map { UInt32($0) }
      flags = bytes.load(at: offset + 4, as: UInt32.self)
      broadcast = UInt32(UInt8.max)
    case .local2:
      identity = bytes.load(at: offset + 4, as: UInt32.self)
      flags = bytes.load(at: offset + 8, as: UInt32.self)
      broadcast = .max
    case .other: return nil
    }
    guard let identity, let flags, identity != broadcast else { return nil }
    // Bit 0: enabled. Bit 1: may be added later; it has no meaning beside bit 0.
    let state: LocalProcessor.State = flags & 1 != 0 ? .enabled : flags & 2 != 0 ? .onlineCapable : .disabled
    return LocalProcessor(identity: APICIdentity(identity), state: state)
  }
}
