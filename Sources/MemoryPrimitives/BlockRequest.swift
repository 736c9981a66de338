// The fields of a request to a block device, in place.

import CPlatform

/// A request to a block device: the device's from `submit` until it has called `done`.
public typealias BlockRequest = UnsafeMutablePointer<cp_block_request>

extension BlockRequest {
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
  @inlinable public var first: UInt64 {
    get { pointee.first }
    nonmutating set { pointee.first = newValue }
  }
  /// Pages to be read or written.
  @inlinable public var count: UInt32 {
    get { pointee.count }
    nonmutating set { pointee.count = newValue }
  }
  /// Whether pages are read or written.
  @inlinable public var operation: cp_block_operation {
    get { pointee.operation }
    nonmutating set { pointee.operation = newValue }
  }
  /// Set by the device before it calls `done`.
  @inlinable public var failed: Bool {
    get { pointee.failed }
    nonmutating set { pointee.failed = newValue }
  }
  /// Called by the device once the request is completed, with `context`.
  @inlinable public var done: (@convention(c) (UnsafeMutableRawPointer?, BlockRequest) -> Void)? {
    get { pointee.done }
    nonmutating set { pointee.done = newValue }
  }
  /// The first argument of `done`.
  @inlinable public var context: UnsafeMutableRawPointer? {
    get { pointee.context }
    nonmutating set { pointee.context = newValue }
  }
}
