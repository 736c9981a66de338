// The rights of a mapping.

/// The rights of a mapping. Reading is always permitted.
@frozen public struct Protection: OptionSet, Sendable {
  /// The rights, a bit for each.
  public let rawValue: UInt8
  /// Creates the rights of these bits.
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// Permits writing.
  @inlinable public static var writable: Self { Self(rawValue: 1) }
  /// Permits instruction fetches.
  @inlinable public static var executable: Self { Self(rawValue: 2) }
  /// The same in every address space, so it outlives a change of CR3: all of the kernel.
  @inlinable public static var global: Self { Self(rawValue: 4) }

  /// Kernel memory for data.
  @inlinable public static var kernelData: Self { Self(rawValue: 5) }
  /// Kernel memory that is only read.
  @inlinable public static var kernelReadOnly: Self { Self(rawValue: 4) }
  /// Kernel code.
  @inlinable public static var kernelText: Self { Self(rawValue: 6) }
}
