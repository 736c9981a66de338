// The kernel's own image in memory: the addresses that the linker gave its parts.

import CPlatform
import Synchronization

/// The image that runs. Valid from the first line of `kernelMain` on.
enum Image {
  private static let place = Atomic<UInt>(0)

  static func adopt(_ image: UnsafePointer<cp_image>) {
    place.store(UInt(bitPattern: image), ordering: .relaxed)
  }

  private static var record: UnsafePointer<cp_image> {
    UnsafePointer(bitPattern: place.load(ordering: .relaxed)).unsafelyUnwrapped
  }

  /// The addresses of the image's parts, as the stub lists them.
  static var layout: cp_image { record.pointee }

  /// Virtual less physical address, for all of the image but the stub.
  static var virtualOffset: UInt64 { record.pointee.virtual_offset }

  /// Buffers that the stub reserves.
  static var storage: UnsafeMutablePointer<cp_kernel_storage> {
    UnsafeMutablePointer(bitPattern: UInt(layout.storage)).unsafelyUnwrapped
  }

  static func isCode(_ address: UInt64) -> Bool {
    address >= record.pointee.text.first && address < record.pointee.text.end
  }

  /// The stack whose guard page holds `address`.
  static func stack(guardedAt address: UInt64) -> cp_span? {
    let stacks = layout.stack
    if guards(stacks.0, address) { return stacks.0 }
    if guards(stacks.1, address) { return stacks.1 }
    if guards(stacks.2, address) { return stacks.2 }
    return nil
  }

  private static func guards(_ stack: cp_span, _ address: UInt64) -> Bool {
    address < stack.first && address >= stack.first - 4096
  }
}
