// A kernel of three short files: it brings Strata up on a bare PC, allocates from every layer, and switches the machine off.
//
// Strata's boot stub enters it on a stack, in the higher half, with the first 4 GiB mapped. It knows one loader (PVH),
// one processor, no threads and no interrupts.

import KernelMemory

/// Called by boot/entry.asm. `record` is the physical address of what the loader left.
@c(kernel_main) public func kernelMain(
  _ loader: cp_loader.RawValue, _ record: UInt64, _ image: UnsafePointer<cp_image>, _ entered: UInt64
) -> Never {
  guard loader == cp_loader.pvh.rawValue else { Power.off(.failed, "boot me with qemu -kernel") }
  // Without CR0.WP, a kernel may write to pages that its tables call read-only.
  cp_write_cr0(cp_read_cr0() | 1 << 16)
  let memory: MemorySystem
  do { memory = try Boot.assemble(image.pointee, record) } catch { Power.off(.failed, error.description) }
  Serial.print("memory is up; free frames: ", memory.physical.freeCount.rawValue)
  Tour(memory: memory).run()
  Power.off(.success, memory.checkInvariants() ?? "all invariants hold")
}

enum Boot {
  static let directMap = DirectMap(base: 0xffff_8000_0000_0000)

  /// One processor without threads: it invalidates for itself, and no thread could ever wake a sleeper.
  nonisolated(unsafe) static var upcalls = cp_upcalls(
    context: nil,
    report_fault: { _, report in
      Power.off(.failed, report.assumingMemoryBound(to: FaultReport.self).pointee.what)
    },
    read_tick: { _ in cp_cycles() >> 20 },
    shoot_down: { _, _, _ in cp_invalidate_all() },
    run_on: { _, _, body, argument in body(argument) },
    sleep: { _, _, _, _, _, _ in .never },
    wake: { _, _ in },
    start: nil, join: nil, confine: nil)

  static func assemble(_ image: cp_image, _ record: UInt64) throws(AssemblyError) -> MemorySystem {
    // Xen's struct hvm_start_info: the map's address is at byte 40, its length at 48. An entry has the layout of
    // cp_boot_range. Both lie below 1 MiB, where boot allocates nothing.
    let start = directMap.pointer(to: PhysicalAddress(record))
    let map = directMap.pointer(to: PhysicalAddress(start.load(fromByteOffset: 40, as: UInt64.self)))
    let ranges = map.assumingMemoryBound(to: cp_boot_range.self)
    let count = Int(start.load(fromByteOffset: 48, as: UInt32.self))
    let storage = UnsafeMutablePointer<cp_kernel_storage>(bitPattern: UInt(image.storage))!
    let machine = withUnsafePointer(to: &upcalls) {
      Machine(directMap: directMap, processorCount: 1, upcalls: $0)
    }
    var request = BootRequest(machine: machine, workspace: cp_workspace(storage), firmwareRangeCount: count)
    guard MemorySystem.workspaceSize(ranges: count).rawValue <= UInt64(CP_WORKSPACE) else {
      Power.off(.failed, "the firmware's map has too many ranges")
    }
    func segment(_ span: cp_span, _ protection: Protection) -> ImageSegment {
      ImageSegment(
        address: VirtualAddress(span.first), physical: PhysicalAddress(span.first - image.virtual_offset),
        count: ByteCount(span.end - span.first).pagesRoundedUp, protection: protection)
    }
    // The pages below the stacks stay unmapped: their guards.
    var segments: InlineArray<7, ImageSegment> = [
      segment(image.text, .kernelText), segment(image.rodata, .kernelReadOnly),
      segment(image.symbols, .kernelReadOnly), segment(image.data, .kernelData),
      segment(image.stack.0, .kernelData), segment(image.stack.1, .kernelData),
      segment(image.stack.2, .kernelData),
    ]
    var occupied = OccupiedRange(
      base: PhysicalAddress(image.physical.first),
      length: ByteCount(image.physical.end - image.physical.first),
      role: .image)
    return try withUnsafePointer(to: &segments) { (segments) throws(AssemblyError) in
      try withUnsafePointer(to: &occupied) { (occupied) throws(AssemblyError) in
        request.image = segments.withMemoryRebound(to: ImageSegment.self, capacity: 7) {
          KernelImage(start: $0, count: 7)
        }
        request.occupied = UnsafeBufferPointer(start: occupied, count: 1)
        return try MemorySystem.assemble(
          request,
          firmware: {
            FirmwareRange(
              base: PhysicalAddress(ranges[$0].base), length: ByteCount(ranges[$0].length),
              kind: ranges[$0].type == 1 ? .usable : .reserved)
          },
          activate: { cp_write_cr3($0.rawValue) })
      }
    }
  }
}
