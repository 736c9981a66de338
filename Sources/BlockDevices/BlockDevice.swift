// Block devices: the interface between a client, which has pages in frames, and a driver, which has pages on a device.
//
// A device takes requests of 1 to 32 pages of 4 KiB. They complete later, in any order, perhaps in an interrupt
// handler.
//
// STRUCTURES
//   BlockDevice   a device: its name, its size, and a table of functions with a context, which the driver fills in
//   BlockRequest  a request in memory of its client; the device's from `submit` until it calls `complete`
//   Transfers     a pool of requests, allocated once, so that page-out allocates nothing
//   RamDisk       a driver over memory: the swap device of a machine that has no disk
//
// INVARIANTS
//   BD-1  A request is its client's or its device's. A device completes each request exactly once, after `submit` has
//         returned or during it on another processor.
//   BD-2  A request of a pool is idle, its owner's, or done. A `Transfer` names it from `begin` to `end`.
//   BD-3  A RAM disk is idle only when each request that it was given is complete.
// BD-1 and BD-2 are checked where a caller would break them: by `Transfers.end` and when a `Transfer` is dropped.
//
// LOCKS. A RAM disk has one spin lock (rank `blockDevice`), around a few words of its queue. A pool has none. No call
// of a client is made with a lock held, and a client submits with no spin lock held.
//
// COST. A request of a RAM disk: about 350 instructions and 20 for each page, beside the copy. A transfer of the pool:
// about 100 beside the device.
//
// EXHAUSTION. Nothing here allocates. `Transfers.begin` answers nil when no request is idle, and `waitForAny` sleeps
// until one is. A request that reaches beyond a device fails.
//
// SOURCES. The bio of FreeBSD (McKusick, Neville-Neil, Watson, "The Design and Implementation of the FreeBSD Operating
// System", chapter 8), reduced to whole pages in frames.

import CPlatform
import MemoryPrimitives

/// A page of a device, by its number.
@frozen public struct DevicePage: Equatable, Comparable, Sendable {
  /// The number of the page.
  public var rawValue: UInt64
  /// The page with that number.
  @inline(always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  @inline(always) public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A device of whole pages: a value of a few words and a function.
public struct BlockDevice {
  /// The name that reports print.
  public let name: ShortName
  /// Pages that the device has.
  public let pageCount: PageCount
  let context: UnsafeMutableRawPointer?
  let submitRequest: @convention(c) (UnsafeMutableRawPointer?, BlockRequest) -> Void

  /// Makes a device. `submitRequest` accepts a request and returns before it is done. It never fails: a request that
  /// the device can't serve is completed as failed.
  public init(
    _ name: ShortName, pages: PageCount, _ context: UnsafeMutableRawPointer?,
    submitRequest: @escaping @convention(c) (UnsafeMutableRawPointer?, BlockRequest) -> Void
  ) {
    self.name = name
    pageCount = pages
    self.context = context
    self.submitRequest = submitRequest
  }

  /// Submits a request. No spin lock may be held.
  public func submit(_ request: BlockRequest) {
    assert(holdsNoSpinLock(), "a request to a device with a spin lock held")
    submitRequest(context, request)
  }
}

// The driver accepts requests from any processor.
extension BlockDevice: @unchecked Sendable {}
