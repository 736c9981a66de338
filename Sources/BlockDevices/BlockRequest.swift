// The fields of a request to a block device, in place.
//
// A request is a C structure, because a function of the device's table takes no Swift type. These wrappers give its
// fields the units of the core.

import CPlatform
import MemoryPrimitives

/// A request to a block device: the device's from `submit` until it calls `complete`.
public typealias BlockRequest = UnsafeMutablePointer<cp_block_request>

/// The direction of a request: pages are read from the device, or written to it.
public typealias DeviceOperation = cp_block_operation

/// The result of a request.
@frozen public enum DeviceOutcome: UInt8, Sendable {
  /// All pages were read or written.
  case success
  /// Some page was not, and any of them may have been.
  case failure
}

extension BlockRequest {
  /// The most pages that one request may have.
  @inlinable public static var pageLimit: PageCount { PageCount(UInt64(CP_BLOCK_PAGES)) }

  // MARK: For the driver

  /// The next request in the device's queue, while the device has this one.
  @inlinable public var next: Self? {
    get { pointee.next }
    nonmutating set { pointee.next = newValue }
  }
  /// A word of the device's, while the device has the request.
  @inlinable public var deviceWord: UInt64 {
    get { pointee.device_word }
    nonmutating set { pointee.device_word = newValue }
  }
  /// The first page of the device that is read or written.
  @inlinable public var first: DevicePage { DevicePage(pointee.first) }
  /// Pages to be read or written.
  @inlinable public var pageCount: PageCount { PageCount(UInt64(pointee.count)) }
  /// Whether pages are read or written.
  @inlinable public var operation: DeviceOperation { pointee.operation }
  /// The frame that page `index` of the request is read to or written from.
  @inlinable public func frame(_ index: Int) -> FrameNumber { FrameNumber(cp_block_frames(self)[index]) }

  /// Whether a device of `pages` pages can serve the request: it has 1 to `pageLimit` pages, all on the device.
  public func fits(_ pages: PageCount) -> Bool {
    pageCount > .zero && pageCount <= Self.pageLimit && first.rawValue <= pages.rawValue
      && pages.rawValue - first.rawValue >= pageCount.rawValue
  }

  /// Gives the request back to its client, which may reuse it during this call. No spin lock may be held.
  public func complete(_ outcome: DeviceOutcome) {
    pointee.failed = outcome == .failure
    pointee.report_done.unsafelyUnwrapped(pointee.context, self)
  }

  // MARK: For the client

  /// The outcome, once the request is complete.
  @inlinable public var outcome: DeviceOutcome { pointee.failed ? .failure : .success }

  /// Sets the frame that page `index` of the request is read to or written from.
  @inlinable public func setFrame(_ index: Int, _ frame: FrameNumber) {
    cp_block_frames(self)[index] = frame.rawValue
  }

  /// Fills in all but the frames of a request that no device has. The device calls `reportDone` with `context` when it
  /// has completed the request: with no lock held, perhaps in an interrupt handler.
  public func prepare(
    _ operation: DeviceOperation, _ first: DevicePage, _ pages: PageCount, context: UnsafeMutableRawPointer?,
    reportDone: @escaping @convention(c) (UnsafeMutableRawPointer?, BlockRequest) -> Void
  ) {
    pointee.next = nil
    pointee.first = first.rawValue
    pointee.count = UInt32(pages.rawValue)
    pointee.operation = operation
    pointee.failed = false
    pointee.context = context
    pointee.report_done = reportDone
  }
}
