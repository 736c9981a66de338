// A block device as the core sees it: pages of 4 KiB, requests that complete later and in any order.

import CPlatform

/// A device of whole pages: a value of two words and a function.
public struct BlockDevice {
  /// The name that reports print.
  public let name: ShortName
  /// Pages that the device has.
  public let pageCount: PageCount
  let context: UnsafeMutableRawPointer?
  let submitRequest: @convention(c) (UnsafeMutableRawPointer?, BlockRequest) -> Void

  /// Makes a device. `submit` accepts a request and returns before it is done. It never fails; `done` reports a failure.
  public init(
    _ name: ShortName, pages: PageCount, _ context: UnsafeMutableRawPointer?,
    submit:
      @escaping @convention(c) (UnsafeMutableRawPointer?, BlockRequest) -> Void
  ) {
    self.name = name
    pageCount = pages
    self.context = context
    submitRequest = submit
  }

  /// Submits a request. No spin lock may be held.
  package func submit(_ request: BlockRequest) {
    assert(holdsNoSpinLock(), "a request to a device with a spin lock held")
    submitRequest(context, request)
  }
}

// The driver accepts requests from any processor.
extension BlockDevice: @unchecked Sendable {}
