// Physical memory, as far as it may be accessed: every read of this module goes through this file.

import MemoryPrimitives

/// Memory below `end`, reached through a direct map.
struct PhysicalReach {
  let end: ByteCount
  let map: DirectMap

  /// Checks that the `count` bytes from `address` on are within reach, and returns them.
  func bytes(at address: PhysicalAddress, count: Int) throws(ACPIError) -> PhysicalBytes {
    let (first, end) = (address.rawValue, end.rawValue)
    guard first < end, UInt64(count) <= end - first else { throw .outOfReach }
    return PhysicalBytes(start: UnsafeRawPointer(map.pointer(to: address)), count: count)
  }
}

/// A range of physical memory within reach.
struct PhysicalBytes {
  private let start: UnsafeRawPointer
  let count: Int

  fileprivate init(start: UnsafeRawPointer, count: Int) {
    self.start = start
    self.count = count
  }

  /// Loads the value at `offset`, at any alignment; nil if it does not end within the range.
  func load<T: BitwiseCopyable>(at offset: Int, as type: T.Type) -> T? {
    guard offset >= 0, offset <= count, MemoryLayout<T>.size <= count - offset else { return nil }
    return start.loadUnaligned(fromByteOffset: offset, as: type)
  }

  /// The sum of all bytes, modulo 256: 0 for each structure that ACPI protects by a checksum.
  var sum: UInt8 {
    var sum: UInt8 = 0
    for offset in 0..<count { sum &+= start.load(fromByteOffset: offset, as: UInt8.self) }
    return sum
  }
}
