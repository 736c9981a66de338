// The loader's record, converted to one structure: `cp_boot_information`.
//
// Sources: Multiboot2 Specification 2.0, 3.6 "Boot information format"; Xen's
// public/arch-x86/hvm/start_info.h for PVH. Both records may lie in memory that the firmware's map calls
// usable, so the kernel copies everything first of all, and never reads the record again. Only the modules stay where
// they are; they count as occupied.

import CPlatform
import MemoryPrimitives

/// Why the loader's record could not be read.
enum BootRecordError: UInt8, Error {
  case noMemoryMap
  case outOfReach

  var description: StaticString {
    switch self {
    case .noMemoryMap: "the loader handed over no memory map"
    case .outOfReach: "the loader left its record above 4 GiB"
    }
  }
}

/// Fills in the boot information.
struct BootRecord {
  let information: UnsafeMutablePointer<cp_boot_information>
  /// The stub's direct map ends here.
  private static var reach: UInt64 { 1 << 32 }

  /// Begins with the memory that the image reserves for the record, all zeroes.
  init(_ image: UnsafePointer<cp_image>) {
    information = UnsafeMutablePointer(bitPattern: UInt(image.pointee.boot_information)).unsafelyUnwrapped
    information.pointee.version = UInt32(CP_BOOT_VERSION)
    information.pointee.image_base = image.pointee.physical.first
    information.pointee.image_end = image.pointee.physical.end
  }

  /// Copies the record at physical address `record`.
  func copy(_ loader: cp_loader, _ record: UInt64) throws(BootRecordError) {
    information.pointee.loader = loader
    switch loader {
    case .multiboot2: try copyMultiboot2(record)
    case .pvh: try copyStartInfo(record)
    }
    guard information.pointee.range_count > 0 else { throw .noMemoryMap }
  }

  private func reach(_ address: UInt64, _ length: UInt64) throws(BootRecordError) -> UnsafeRawPointer {
    guard address != 0, address < Self.reach, length <= Self.reach - address else { throw .outOfReach }
    return UnsafeRawPointer(Executive.directMap.pointer(to: PhysicalAddress(address)))
  }

  // -- multiboot2: a size, then tags of (type, size, contents), each at a multiple of 8 bytes.

  private func copyMultiboot2(_ record: UInt64) throws(BootRecordError) {
    let size = try reach(record, 8).load(as: UInt32.self)
    let start = try reach(record, UInt64(size))
    var offset = 8
    while offset + 8 <= Int(size) {
      let tag = start + offset
      let type = tag.load(as: UInt32.self)
      let length = Int(tag.load(fromByteOffset: 4, as: UInt32.self))
      guard type != 0, length >= 8, length <= Int(size) - offset else { return }
      switch type {
      case 1: copyLine(from: tag + 8, length: length - 8)
      case 3 where length >= 16:
        let (first, end) = (
          tag.load(fromByteOffset: 8, as: UInt32.self), tag.load(fromByteOffset: 12, as: UInt32.self)
        )
        addModule(at: UInt64(first), length: end >= first ? UInt64(end - first) : 0)
      case 6 where length >= 16:
        let stride = Int(tag.load(fromByteOffset: 8, as: UInt32.self))
        guard stride >= 24 else { break }
        var entry = 16
        while entry + 24 <= length {
          addRange(at: tag + entry)
          entry += stride
        }
      case 14: copyRoot(from: tag + 8, length: min(length - 8, 20))
      case 15: copyRoot(from: tag + 8, length: min(length - 8, 36))
      default: break
      }
      offset += (length + 7) & ~7
    }
  }

  // -- PVH: struct hvm_start_info and what it points to.

  private func copyStartInfo(_ record: UInt64) throws(BootRecordError) {
    let start = try reach(record, 56)
    let version = start.load(fromByteOffset: 4, as: UInt32.self)
    let moduleCount = start.load(fromByteOffset: 12, as: UInt32.self)
    let modules = start.load(fromByteOffset: 16, as: UInt64.self)
    let line = start.load(fromByteOffset: 24, as: UInt64.self)
    information.pointee.acpi_root = start.load(fromByteOffset: 32, as: UInt64.self)
    if line != 0 {
      copyLine(from: try reach(line, 1), length: Int(clamping: Self.reach - line))
    }
    if moduleCount > 0 {
      let list = try reach(modules, UInt64(moduleCount) * 32)
      for i in 0..<Int(moduleCount) {
        addModule(
          at: list.load(fromByteOffset: i * 32, as: UInt64.self),
          length: list.load(fromByteOffset: i * 32 + 8, as: UInt64.self))
      }
    }
    guard version >= 1 else { throw .noMemoryMap }
    let rangeCount = start.load(fromByteOffset: 48, as: UInt32.self)
    guard rangeCount > 0 else { throw .noMemoryMap }
    let map = try reach(start.load(fromByteOffset: 40, as: UInt64.self), UInt64(rangeCount) * 24)
    for i in 0..<Int(rangeCount) { addRange(at: map + i * 24) }
  }

  // -- Contents of both records.

  /// A base, a length and a type: the same bytes in both records, and in `cp_boot_range`.
  private func addRange(at entry: UnsafeRawPointer) {
    let count = Int(information.pointee.range_count)
    guard count < Int(CP_BOOT_RANGES) else {
      information.pointee.ranges_dropped &+= 1
      return
    }
    let ranges = cp_boot_ranges(information)
    ranges[count] = entry.loadUnaligned(as: cp_boot_range.self)
    ranges[count].attributes = 0
    information.pointee.range_count += 1
  }

  private func addModule(at base: UInt64, length: UInt64) {
    let count = Int(information.pointee.module_count)
    guard count < Int(CP_BOOT_MODULES) else {
      information.pointee.modules_dropped &+= 1
      return
    }
    cp_boot_modules(information)[count] = cp_boot_module(base: base, length: length)
    information.pointee.module_count += 1
  }

  /// Text up to a zero byte, or up to `length`.
  private func copyLine(from line: UnsafeRawPointer, length: Int) {
    let text = cp_boot_line(information)
    var count = 0
    while count < length {
      let byte = line.load(fromByteOffset: count, as: UInt8.self)
      guard byte != 0 else { break }
      if count < Int(CP_BOOT_LINE) {
        text[count] = byte
      } else {
        information.pointee.line_dropped &+= 1
      }
      count += 1
    }
    information.pointee.line_length = UInt32(min(count, Int(CP_BOOT_LINE)))
  }

  /// Multiboot2 hands over a copy of the ACPI root pointer inside its record, which does not last. The
  /// one of version 2 (36 bytes) is kept where both are given.
  private func copyRoot(from rootCopy: UnsafeRawPointer, length: Int) {
    guard length >= 20, information.pointee.acpi_root == 0 || length >= 36 else { return }
    let kept = cp_acpi_root(Image.storage)
    UnsafeMutableRawPointer(kept).copyMemory(from: rootCopy, byteCount: length)
    information.pointee.acpi_root = UInt64(UInt(bitPattern: kept)) &- Image.virtualOffset
  }
}
