// The local APIC as the processor itself describes it, and the two ways to reach its registers.
//
// IA32_APIC_BASE (Intel SDM vol. 3A, 11.4.4 and 11.12.1): bit 11 switches the APIC on, bit 10 makes it an x2APIC, bits
// 12 up are the physical address of an xAPIC's registers. Firmware with processors from identity 255 on, or with
// interrupt remapping, leaves the x2APIC on. An xAPIC's registers lie in memory, 16 bytes apart; those of an x2APIC are
// model-specific registers from 0x800 on, one for each (11.12.1.2), and its registers in memory are gone.
//
// A message is the interrupt command register (11.6.1, 11.12.9): an xAPIC accepts it in two halves, the upper with an
// identity of 8 bits; an x2APIC accepts it whole, with an identity of 32 bits.

import MemoryPrimitives

/// The value of IA32_APIC_BASE.
package struct LocalAPICBase: Equatable, Sendable {
  /// The value as the register has it.
  package let rawValue: UInt64
  /// Makes the value of the register's contents.
  package init(_ rawValue: UInt64) { self.rawValue = rawValue }

  /// The number of the model-specific register.
  package static var register: UInt32 { 0x1b }

  private static var isX2APIC: UInt64 { 1 << 10 }
  private static var isOn: UInt64 { 1 << 11 }

  /// The way to reach the APIC; nil while it is switched off.
  package var addressing: APICIdentity.Addressing? {
    guard rawValue & Self.isOn != 0 else { return nil }
    return rawValue & Self.isX2APIC != 0 ? .x2APIC : .xAPIC
  }

  /// The registers of an xAPIC.
  package var address: PhysicalAddress { PhysicalAddress(rawValue & 0x000f_ffff_ffff_f000) }

  /// The same APIC, switched off.
  package var off: Self { Self(rawValue & ~(Self.isOn | Self.isX2APIC)) }

  /// The same APIC, switched on.
  package func on(_ addressing: APICIdentity.Addressing) -> Self {
    Self(off.rawValue | Self.isOn | (addressing == .x2APIC ? Self.isX2APIC : 0))
  }

  /// Whether one write makes this APIC `other`: from x2APIC to xAPIC the way leads over `off` (11.12.5).
  package func canBecome(_ other: Self) -> Bool { addressing != .x2APIC || other.addressing != .xAPIC }
}

/// A register of a local APIC, by its offset in an xAPIC's page (table 11-1).
package struct LocalAPICRegister: Equatable, Sendable {
  /// The offset in bytes.
  package let offset: UInt32
  /// Makes a register of its offset.
  package init(_ offset: UInt32) { self.offset = offset }

  /// The model-specific register that an x2APIC has for it.
  package var number: UInt32 { 0x800 + (offset >> 4) }
}

/// A message to one processor: the value to write to the interrupt command register.
package struct InterruptCommand: Equatable, Sendable {
  /// The lower half: vector, delivery mode, level.
  package let message: UInt32
  /// The processor that gets the message.
  package let target: APICIdentity
  /// Makes a message to a processor.
  package init(_ message: UInt32, to target: APICIdentity) {
    self.message = message
    self.target = target
  }

  /// The upper half for an xAPIC, to be written before the lower.
  package var upperHalf: UInt32 {
    precondition(target.addressing == .xAPIC, "an xAPIC can't reach this processor")
    return target.rawValue << 24
  }
  /// Both halves for an x2APIC.
  package var whole: UInt64 { UInt64(target.rawValue) << 32 | UInt64(message) }
}
