// The order in which spin locks may be taken: only a lock of a higher rank than any that this processor
// holds. Ranks are checked where assertions are (tests, and the kernel as built by the Makefile).

/// The place of a spin lock in the order. A gap is left between neighbours for the floors to come.
@frozen public struct LockRank: Equatable, Sendable {
  public let rawValue: UInt32
  @inlinable public init(_ rawValue: UInt32) { self.rawValue = rawValue }

  /// The table of pageable ranges.
  @inlinable public static var pagingMap: Self { Self(10) }
  /// A memory object: its slots, and what is said of its pages.
  @inlinable public static var pagingObject: Self { Self(20) }
  @inlinable public static var vmemArena: Self { Self(30) }
  @inlinable public static var vmemTags: Self { Self(35) }
  @inlinable public static var pageTables: Self { Self(40) }
  @inlinable public static var kmemCaches: Self { Self(45) }
  @inlinable public static var kmemDepot: Self { Self(50) }
  @inlinable public static var kmemSlabs: Self { Self(55) }
  /// Slots of the swap device.
  @inlinable public static var pagingSwap: Self { Self(57) }
  @inlinable public static var pagingQueues: Self { Self(58) }
  /// What a RAM disk has been asked for.
  @inlinable public static var blockDevice: Self { Self(59) }
  @inlinable public static var physicalDomain: Self { Self(60) }
  @inlinable public static var registry: Self { Self(70) }
}
