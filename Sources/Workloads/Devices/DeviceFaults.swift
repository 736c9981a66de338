// The faults that a disk can be set to produce (`FaultyDisk`): all those of a real device, at given rates, in an order
// that a seed decides.

/// A share, in parts of a thousand.
package struct PerMille: Equatable, Sendable, ExpressibleByIntegerLiteral {
  /// The parts of a thousand.
  package var rawValue: UInt16
  /// A share of `rawValue` in a thousand.
  package init(_ rawValue: UInt16) { self.rawValue = rawValue }
  /// A share, written as its parts of a thousand.
  package init(integerLiteral value: UInt16) { rawValue = value }
}

/// The faults of a device. With the default, all zero, it carries out each request correctly, in their order.
package struct DeviceFaults: Sendable {
  /// Decides which requests have a fault, and which pages are bad.
  package var seed: UInt64 = 0
  /// Requests that fail, after some of their pages have arrived.
  package var failed: PerMille = 0
  /// Requests that report success when only some of their pages have arrived, the last of these in part.
  package var torn: PerMille = 0
  /// Requests in which one bit flips: on the device when they write, in a frame when they read.
  package var corrupted: PerMille = 0
  /// Requests that are not due before up to `longestDelay` polls more have passed.
  package var delayed: PerMille = 0
  /// The most polls by which a request is delayed.
  package var longestDelay: UInt32 = 0
  /// Polls that carry out any of the requests that are due, instead of the oldest.
  package var reordered: PerMille = 0
  /// Pages of the device for which every request fails.
  package var bad: PerMille = 0

  /// No faults, with the seed for those that are set later.
  package init(seed: UInt64 = 0) { self.seed = seed }

  /// Whether there is any fault.
  var isAny: Bool {
    failed != 0 || torn != 0 || corrupted != 0 || delayed != 0 || reordered != 0 || bad != 0
  }

  /// Whether `page` is one of the bad ones.
  func isBad(_ page: UInt64) -> Bool {
    bad != 0 && Self.mixed(seed &+ 0x5851_f42d_4c95_7f2d &* (page &+ 1)) % 1000 < UInt64(bad.rawValue)
  }

  /// SplitMix64 (Steele, Lea, Flood 2014).
  static func mixed(_ value: UInt64) -> UInt64 {
    var z = value
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}

/// The counts of a faulty disk, in requests.
package struct FaultyDiskFigures: Sendable {
  /// Requests to read.
  package var reads: UInt64 = 0
  /// Requests to write.
  package var writes: UInt64 = 0
  /// Pages of both.
  package var pages: UInt64 = 0
  /// Requests that failed, by a fault, a bad page, or because they lay beyond the device.
  package var failed: UInt64 = 0
  /// Requests that were torn.
  package var torn: UInt64 = 0
  /// Requests in which a bit was flipped.
  package var corrupted: UInt64 = 0
  /// Requests that were delayed.
  package var delayed: UInt64 = 0
  /// Requests that were carried out before one that was due earlier.
  package var reordered: UInt64 = 0
}
