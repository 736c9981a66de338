// `swap.ramdisk=SIZE` on the command line: the top of memory becomes a RAM disk before Strata takes the rest.
//
// The boot record is rewritten as if the firmware had reported the disk: usable ranges end where it begins, and it
// has a range, or several, of its own. So every reader of the map sees the same.

import CPlatform
import Console
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

enum RamDiskMemory {
  /// Cuts off the memory that the command line requests, rounded up to pages, and answers where it lies; an empty
  /// carve-out when it requests none. Stops the machine when that much memory can't be cut off. `workspace` is zeroed
  /// again afterwards.
  static func cut(
    _ information: UnsafeMutablePointer<cp_boot_information>, _ rules: MapRules,
    avoiding occupied: UnsafeBufferPointer<OccupiedRange>, _ workspace: UnsafeMutableRawPointer
  ) -> CarveOut {
    let line = KernelCommandLine(
      UnsafeBufferPointer(start: cp_boot_line(information), count: Int(information.pointee.line_length)))
    let size: ByteCount
    switch line.size(of: "swap.ramdisk") {
    case .none: return CarveOut()
    case .unreadable(let words): refuse("its value is no size: \(words)")
    case .size(let asked): size = asked
    }
    guard size > .zero else { return CarveOut() }
    let ranges = cp_boot_ranges(information)
    let carveOut: CarveOut
    do throws(PhysicalMemoryError) {
      // Sorted, and without what is reserved or in use.
      let map = try MemoryMap(workspace, count: Int(information.pointee.range_count), rules: rules) {
        FirmwareRange(ranges[$0])
      }
      do throws(CarveOutError) {
        carveOut = try CarveOut(top: size.pagesRoundedUp, of: map, avoiding: occupied)
      } catch {
        refuse("\(size) of \(map.frames.bytes) can't be cut off: \(error.description)")
      }
    } catch {
      refuse("the firmware's map holds no usable memory")
    }
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: Int(CP_WORKSPACE))
    for i in 0..<carveOut.count { separate(carveOut[i], outOf: information) }
    return carveOut
  }

  /// Adds the statistic of the memory that was cut off.
  static func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "swap.ramdisk", .bytes, .gauge, "cut off the top of memory at boot",
        context: nil, read: { _ in Assembly.memory?.carveOut.pages.bytes.rawValue ?? 0 }))
  }

  /// Gives `run` a range of its own.
  private static func separate(
    _ run: FrameRun, outOf information: UnsafeMutablePointer<cp_boot_information>
  ) {
    let ranges = cp_boot_ranges(information)
    let first = run.first.address.rawValue
    let last = first + (run.count.bytes.rawValue - 1)
    var i = 0
    while i < Int(information.pointee.range_count) {
      let range = ranges[i]
      let (rangeLast, wraps) = range.base.addingReportingOverflow(range.length &- 1)
      // A range that wraps around, or is empty, is no memory.
      guard range.type == 1, range.length > 0, !wraps, range.base <= last, rangeLast >= first else {
        i += 1
        continue
      }
      // The parts below and above the run remain. A range with both becomes two ranges; a range with neither is
      // removed.
      if range.base < first {
        ranges[i].length = first - range.base
        if rangeLast > last { add(last + 1, rangeLast - last, 1, to: information) }
      } else if rangeLast > last {
        ranges[i].base = last + 1
        ranges[i].length = rangeLast - last
      } else {
        information.pointee.range_count -= 1
        ranges[i] = ranges[Int(information.pointee.range_count)]
        continue
      }
      i += 1
    }
    add(first, last - first + 1, cp_boot_type_ram_disk, to: information)
  }

  private static func add(
    _ base: UInt64, _ length: UInt64, _ type: UInt32,
    to information: UnsafeMutablePointer<cp_boot_information>
  ) {
    let count = Int(information.pointee.range_count)
    guard count < Int(CP_BOOT_RANGES) else {
      refuse("the firmware's map has too many ranges for one more")
    }
    cp_boot_ranges(information)[count] = cp_boot_range(base: base, length: length, type: type, attributes: 0)
    information.pointee.range_count += 1
  }

  private static func refuse(_ words: Line) -> Never {
    Reports.panic("a machine that Strata refuses", "swap.ramdisk: \(words)")
  }
}
