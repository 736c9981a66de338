// The memory subsystem of this machine, assembled from the boot record, its command line and the image.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory

enum Assembly {
  /// The system that is up, for reports. Written once, before anything else runs.
  nonisolated(unsafe) private(set) static var memory: MemorySystem?

  /// Brings the memory subsystem up and switches to its page tables. Stops a machine that is too small.
  static func run(
    _ information: UnsafeMutablePointer<cp_boot_information>, _ features: ProcessorFeatures
  ) -> MemorySystem {
    let count = Int(information.pointee.range_count)
    precondition(
      MemorySystem.workspaceSize(ranges: Int(CP_BOOT_RANGES) + CarveOut.limit).rawValue
        <= UInt64(CP_WORKSPACE),
      "the workspace is too small for the firmware's map")
    guard information.pointee.ranges_dropped == 0 else {
      Reports.panic("a machine that Strata refuses", "its memory map has more than \(count) ranges")
    }
    let workspace = UnsafeMutableRawPointer(cp_workspace(Image.storage))
    let ranges = cp_boot_ranges(information)
    var segments = Self.segments
    var occupied = Self.occupied(information)
    let rules = MapRules(information, features)
    do throws(AssemblyError) {
      return try withUnsafePointer(to: &segments) { (segments) throws(AssemblyError) in
        try withUnsafePointer(to: &occupied) { (occupied) throws(AssemblyError) in
          let occupied = occupied.withMemoryRebound(to: OccupiedRange.self, capacity: occupiedLimit) {
            UnsafeBufferPointer(start: $0, count: 1 + Int(information.pointee.module_count))
          }
          let carveOut = RamDiskMemory.cut(
            information, rules, avoiding: occupied, workspace)
          // The cut has divided ranges.
          var request = BootRequest(
            machine: Executive.machine, workspace: workspace,
            firmwareRangeCount: Int(information.pointee.range_count))
          request.largestLeaf = features.gibibytePages ? .gibibyte : .mebibytes2
          request.rules = rules
          request.carveOut = carveOut
          request.occupied = occupied
          request.image = segments.withMemoryRebound(to: ImageSegment.self, capacity: segmentCount) {
            KernelImage(start: $0, count: segmentCount)
          }
          let memory = try MemorySystem.assemble(
            request, firmware: { FirmwareRange(ranges[$0]) }, activate: { cp_write_cr3($0.rawValue) })
          Self.memory = memory
          return memory
        }
      }
    } catch {
      Reports.panic("a machine that Strata refuses", "\(error.description)")
    }
  }

  private static var segmentCount: Int { 4 + Int(CP_STACKS) }

  /// The image as the final tables map it. The pages between the stacks stay unmapped: their guards.
  private static var segments: InlineArray<7, ImageSegment> {
    let image = Image.layout
    return [
      segment(image.text, .kernelText), segment(image.rodata, .kernelReadOnly),
      segment(image.data, .kernelData), segment(image.symbols, .kernelReadOnly),
      segment(image.stack.0, .kernelData), segment(image.stack.1, .kernelData),
      segment(image.stack.2, .kernelData),
    ]
  }

  private static func segment(_ span: cp_span, _ protection: Protection) -> ImageSegment {
    ImageSegment(
      address: VirtualAddress(span.first), physical: PhysicalAddress(span.first &- Image.virtualOffset),
      count: ByteCount(span.end - span.first).pagesRoundedUp, protection: protection)
  }

  private static var occupiedLimit: Int { 1 + Int(CP_BOOT_MODULES) }

  /// The image, then the modules. The boot record itself was copied into the image.
  private static func occupied(
    _ information: UnsafeMutablePointer<cp_boot_information>
  ) -> InlineArray<9, OccupiedRange> {
    let image = Image.layout.physical
    var list = InlineArray<9, OccupiedRange>(
      repeating: OccupiedRange(
        base: PhysicalAddress(image.first), length: ByteCount(image.end - image.first), role: .image))
    for index in 0..<Int(information.pointee.module_count) {
      let module = cp_boot_modules(information)[index]
      list[1 + index] = OccupiedRange(
        base: PhysicalAddress(module.base), length: ByteCount(module.length), role: .bootModule)
    }
    return list
  }
}

extension FirmwareRange {
  /// Converts a range by ACPI 6.4, table 15.4: type 1 is memory; no other type is used, reclaimable tables included.
  init(_ range: cp_boot_range) {
    self.init(
      base: PhysicalAddress(range.base), length: ByteCount(range.length),
      kind: range.type == 1 ? .usable : .reserved)
  }
}
