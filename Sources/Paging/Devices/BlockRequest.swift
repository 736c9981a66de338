// The fields of a request to a block device, in place.

import CPlatform
import MemoryPrimitives

typealias BlockRequest = UnsafeMutablePointer<cp_block_request>

extension BlockRequest {
  /// The next request in the device's queue, while the device has this one.
  var next: Self? {
    get { pointee.next }
    nonmutating set { pointee.next = newValue }
  }
  /// A word of the device's, while the device has the request.
  var deviceWord: UInt64 {
    get { pointee.device_word }
    nonmutating set { pointee.device_word = newValue }
  }
  /// The first page of the device.
  var first: UInt64 {
    get { pointee.first }
    nonmutating set { pointee.first = newValue }
  }
  var count: UInt32 {
    get { pointee.count }
    nonmutating set { pointee.count = newValue }
  }
  var operation: cp_block_operation {
    get { pointee.operation }
    nonmutating set { pointee.operation = newValue }
  }
  /// Set by the device before it calls `done`.
  var failed: Bool {
    get { pointee.failed }
    nonmutating set { pointee.failed = newValue }
  }
  /// Called by the device once the request is completed, with `context`.
  var done: (@convention(c) (UnsafeMutableRawPointer?, BlockRequest) -> Void)? {
    get { pointee.done }
    nonmutating set { pointee.done = newValue }
  }
  var context: UnsafeMutableRawPointer? {
    get { pointee.context }
    nonmutating set { pointee.context = newValue }
  }
}
