// Quantities as types: no bare integer crosses a public call, so that a frame number
// can't be taken for an address, nor pages for bytes.
//
// A frame number has 32 bits and all ones means none: physical memory is used below 16 TiB less one
// page. Ranges of addresses have inclusive ends where they may touch the top of the space, and a count
// otherwise.
//
// No operation wraps. A sum or a difference that a unit can't hold comes from a bug, and traps. But a caller may request
// any number of pages, or a block of any order, without a bug. The conversion then answers the largest value, which no
// memory has, so that the request is refused like any other that is too large.

/// Bytes in a page, and in a frame.
public enum Page {
  /// Bytes in a page.
  @inlinable public static var size: UInt64 { 4096 }
  /// Its binary logarithm: a frame number is an address shifted by it.
  @inlinable public static var shift: UInt64 { 12 }
}

/// An address on the memory bus.
@frozen public struct PhysicalAddress: Equatable, Comparable, Sendable {
  /// The address as an integer.
  public var rawValue: UInt64
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  /// Makes the address of a frame's first byte.
  @inline(always) public init(_ frame: FrameNumber) { rawValue = UInt64(frame.rawValue) << Page.shift }

  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The address so many bytes further. Traps beyond the largest.
  @inline(always) public static func + (a: Self, b: ByteCount) -> Self { Self(a.rawValue + b.rawValue) }

  /// The frame that holds this address: none for the last page below 16 TiB. Traps from 16 TiB on.
  @inline(always) public var frame: FrameNumber { FrameNumber(UInt32(rawValue >> Page.shift)) }
  /// Bytes from the start of the page.
  @inline(always) public var offsetInPage: UInt64 { rawValue & (Page.size - 1) }
}

/// An address as the processor's instructions use it.
@frozen public struct VirtualAddress: Equatable, Comparable, Sendable {
  /// The address as an integer.
  public var rawValue: UInt64
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  /// Makes the address that a pointer holds.
  @inline(always) public init(_ pointer: UnsafeRawPointer) { rawValue = UInt64(UInt(bitPattern: pointer)) }

  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The address so many bytes further. Traps beyond the largest.
  @inline(always) public static func + (a: Self, b: ByteCount) -> Self { Self(a.rawValue + b.rawValue) }
  /// The address so many pages further. Traps beyond the largest.
  @inline(always) public static func + (a: Self, b: PageCount) -> Self {
    // Not by way of `bytes`, which would stop at the largest number.
    Self(a.rawValue + b.rawValue * Page.size)
  }

  /// The memory behind the address. Sound only where the address is mapped.
  @inline(always) public var pointer: UnsafeMutableRawPointer? {
    UnsafeMutableRawPointer(bitPattern: UInt(rawValue))
  }
  /// Bytes from the start of the page.
  @inline(always) public var offsetInPage: UInt64 { rawValue & (Page.size - 1) }
  /// The start of the page that holds this address.
  @inline(always) public var page: Self { Self(rawValue & ~(Page.size - 1)) }
}

/// A number of bytes.
@frozen public struct ByteCount: Equatable, Comparable, Sendable, ExpressibleByIntegerLiteral {
  /// The number of bytes.
  public var rawValue: UInt64
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  /// Makes a value of an integer, which must not be negative.
  @inline(always) public init(_ rawValue: Int) { self.rawValue = UInt64(rawValue) }
  @inline(always) public init(integerLiteral value: UInt64) { rawValue = value }

  /// None.
  @inline(always) public static var zero: Self { Self(UInt64(0)) }
  /// `n` times 1024 bytes.
  @inline(always) public static func kibibytes(_ n: UInt64) -> Self { Self(n * (1 << 10)) }
  /// `n` times 1024 KiB.
  @inline(always) public static func mebibytes(_ n: UInt64) -> Self { Self(n * (1 << 20)) }
  /// `n` times 1024 MiB.
  @inline(always) public static func gibibytes(_ n: UInt64) -> Self { Self(n * (1 << 30)) }

  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The sum. Traps where it does not fit.
  @inline(always) public static func + (a: Self, b: Self) -> Self { Self(a.rawValue + b.rawValue) }
  /// The difference. Traps where `b` is more.
  @inline(always) public static func - (a: Self, b: Self) -> Self { Self(a.rawValue - b.rawValue) }
  /// Adds `b`. Traps where the sum does not fit.
  @inline(always) public static func += (a: inout Self, b: Self) { a.rawValue += b.rawValue }
  /// Subtracts `b`. Traps where it is more.
  @inline(always) public static func -= (a: inout Self, b: Self) { a.rawValue -= b.rawValue }
  /// The difference; zero where `other` is more.
  @inline(always) public func subtractingSaturated(_ other: Self) -> Self {
    Self(rawValue > other.rawValue ? rawValue - other.rawValue : 0)
  }

  /// Whole pages that hold this many bytes.
  @inline(always) public var pagesRoundedUp: PageCount {
    PageCount((rawValue >> Page.shift) + (rawValue & (Page.size - 1) == 0 ? 0 : 1))
  }
}

/// A number of pages, or of frames.
@frozen public struct PageCount: Equatable, Comparable, Sendable, ExpressibleByIntegerLiteral {
  /// The number of pages.
  public var rawValue: UInt64
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  /// Makes a value of an integer, which must not be negative.
  @inline(always) public init(_ rawValue: Int) { self.rawValue = UInt64(rawValue) }
  @inline(always) public init(integerLiteral value: UInt64) { rawValue = value }

  /// None.
  @inline(always) public static var zero: Self { Self(UInt64(0)) }
  /// A single page.
  @inline(always) public static var one: Self { Self(UInt64(1)) }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The sum. Traps where it does not fit.
  @inline(always) public static func + (a: Self, b: Self) -> Self { Self(a.rawValue + b.rawValue) }
  /// The difference. Traps where `b` is more.
  @inline(always) public static func - (a: Self, b: Self) -> Self { Self(a.rawValue - b.rawValue) }
  /// Adds `b`. Traps where the sum does not fit.
  @inline(always) public static func += (a: inout Self, b: Self) { a.rawValue += b.rawValue }
  /// Subtracts `b`. Traps where it is more.
  @inline(always) public static func -= (a: inout Self, b: Self) { a.rawValue -= b.rawValue }
  /// The difference; zero where `other` is more.
  @inline(always) public func subtractingSaturated(_ other: Self) -> Self {
    Self(rawValue > other.rawValue ? rawValue - other.rawValue : 0)
  }

  /// Their bytes; the largest number of bytes from 2^52 pages on.
  @inline(always) public var bytes: ByteCount {
    ByteCount(rawValue >> (64 - Page.shift) == 0 ? rawValue << Page.shift : UInt64.max)
  }
}

/// The number of a frame: its physical address over 4096.
@frozen public struct FrameNumber: Equatable, Comparable, Sendable {
  /// The number; all ones means none.
  public var rawValue: UInt32
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt32) { self.rawValue = rawValue }

  /// No frame: all ones.
  @inline(always) public static var none: Self { Self(UInt32.max) }
  /// The first number that no frame can have.
  @inline(always) public static var limit: UInt32 { UInt32.max }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// The frame so many further. Traps where that has no number.
  @inline(always) public static func + (a: Self, b: PageCount) -> Self {
    Self(a.rawValue + UInt32(b.rawValue))
  }
  /// Frames from `b` up to this one. Traps where `b` lies behind it.
  @inline(always) public static func - (a: Self, b: Self) -> PageCount {
    PageCount(UInt64(a.rawValue - b.rawValue))
  }
  /// Goes so many frames on. Traps where that has no number.
  @inline(always) public static func += (a: inout Self, b: PageCount) { a = a + b }

  /// The address of the frame's first byte.
  @inline(always) public var address: PhysicalAddress { PhysicalAddress(self) }
}

/// Frames that follow each other.
@frozen public struct FrameRun: Equatable, Sendable {
  /// The first frame.
  public var first: FrameNumber
  /// The number of frames.
  public var count: PageCount
  /// Makes a run of its first frame and its length.
  @inline(always) public init(first: FrameNumber, count: PageCount) {
    self.first = first
    self.count = count
  }
  /// The frame behind the last one. Traps when that has no number: the run is not one of memory.
  @inline(always) public var end: FrameNumber { first + count }
  /// Whether the run has `frame`, however long it says that it is.
  @inline(always) public func contains(_ frame: FrameNumber) -> Bool {
    frame >= first && frame - first < count
  }
}

/// The binary logarithm of a buddy block's size in frames: 0 to 18 (4 KiB to 1 GiB).
@frozen public struct BlockOrder: Equatable, Comparable, Sendable {
  /// The exponent.
  public var rawValue: UInt8
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt8) { self.rawValue = rawValue }

  /// The order of the largest block.
  @inline(always) public static var highest: Self { Self(18) }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }

  /// Frames of a block; the largest number from order 64 on.
  @inline(always) public var frames: PageCount {
    PageCount(rawValue < 64 ? UInt64(1) << UInt64(rawValue) : UInt64.max)
  }
  /// The smallest order whose blocks hold `count` frames, which must not be zero; it may exceed
  /// `highest`. Traps for zero.
  @inline(always) public static func holding(_ count: PageCount) -> Self {
    Self(UInt8(truncatingIfNeeded: 64 - (count.rawValue - 1).leadingZeroBitCount))
  }
}

/// A power of two, in bytes.
@frozen public struct Alignment: Equatable, Comparable, Sendable {
  /// The power of two.
  public let rawValue: UInt64
  /// Nil unless `bytes` is a power of two.
  @inline(always) public init?(_ bytes: UInt64) {
    guard bytes != 0, bytes & (bytes - 1) == 0 else { return nil }
    rawValue = bytes
  }
  @inlinable init(powerOfTwo bytes: UInt64) { rawValue = bytes }
  /// Any address.
  @inline(always) public static var byte: Self { Self(powerOfTwo: 1) }
  /// A cache line: 64 bytes.
  @inline(always) public static var cacheLine: Self { Self(powerOfTwo: 64) }
  /// A page.
  @inline(always) public static var page: Self { Self(powerOfTwo: Page.size) }
  /// A pageblock: 2 MiB, the range of a large leaf.
  @inline(always) public static var pageblock: Self { Self(powerOfTwo: 1 << 21) }
  /// The range of the largest leaf: 1 GiB.
  @inline(always) public static var gibibyte: Self { Self(powerOfTwo: 1 << 30) }
  /// The next multiple at `value` or above. Traps where that does not fit.
  @inlinable package func roundUp(_ value: Int) -> Int { (value + Int(rawValue) - 1) & ~(Int(rawValue) - 1) }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// The number of a processor, from 0.
@frozen public struct ProcessorIndex: Equatable, Sendable {
  /// The number.
  public var rawValue: UInt32
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt32) { self.rawValue = rawValue }
}

/// Time, as the machine's timer counts it.
@frozen public struct Tick: Equatable, Comparable, Sendable {
  /// Ticks since the timer started.
  public var rawValue: UInt64
  /// Makes a value of an integer.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  /// Later than everything: a wait without a deadline.
  @inline(always) public static var never: Self { Self(UInt64.max) }
}

/// How far down towards the last frame a request may reach, and whether it may wait.
@frozen public enum AllocationPriority: UInt8, Sendable {
  /// Leaves the reserve alone.
  case normal
  /// May use most of the reserve: work that will free memory soon.
  case system
  /// May use the last frame, and never waits: interrupt handlers and page-out.
  case interrupt
}
