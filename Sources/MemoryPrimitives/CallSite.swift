// The caller of a request: a code address in 30 bits, so that it fits into a boundary tag beside a link.
//
// The kernel's image lies in the last 2 GiB and is far smaller than 1 GiB, so the low 30 bits of a
// code address name it exactly there. On the host they are a hint only.

import CPlatform

/// The low 30 bits of a code address; zero means unknown.
@frozen public struct CallSite: Equatable, Sendable {
  @usableFromInline package var rawValue: UInt32
  /// Makes a call site of the low 30 bits of an address.
  @inline(always) package init(rawValue: UInt32) { self.rawValue = rawValue & 0x3fff_ffff }
  @inline(always) package init(codeAddress: UInt64) {
    rawValue = UInt32(truncatingIfNeeded: codeAddress) & 0x3fff_ffff
  }

  /// No call site.
  @inline(always) public static var unknown: Self { Self(rawValue: 0) }
  /// The address of the code into which this is inlined.
  @inline(always) public static var here: Self { Self(codeAddress: cp_here()) }

  /// Computes the full address, for an image whose code lies in the gibibyte at `base`.
  @inlinable public func address(inImageAt base: VirtualAddress) -> VirtualAddress {
    VirtualAddress(base.rawValue & ~0x3fff_ffff | UInt64(rawValue))
  }
}
