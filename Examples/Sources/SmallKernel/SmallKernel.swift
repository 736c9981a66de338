// A kernel of one file: it brings Strata up on a bare PC, allocates from every layer, and switches the machine off.
//
// Strata's boot stub enters it on a stack, in the higher half, with the first 4 GiB mapped. It knows one loader (PVH),
// one processor, no threads and no interrupts.

import KernelMemory

/// Called by boot/entry.asm. `record` is the physical address of what the loader left.
@c(kernel_main) public func kernelMain(
  _ loader: cp_loader.RawValue, _ record: UInt64, _ image: UnsafePointer<cp_image>, _ entered: UInt64
) -> Never {
  guard loader == cp_loader.pvh.rawValue else { stop("boot me with qemu -kernel") }
  // Without CR0.WP, a kernel may write to pages that its tables call read-only.
  cp_write_cr0(cp_read_cr0() | 1 << 16)
  let memory: MemorySystem
  do { memory = try assemble(image.pointee, record) } catch { stop(error.description) }
  write("memory is up; free frames: ", memory.physical.freeCount.rawValue)
  tour(memory)
  if let broken = memory.checkInvariants() { stop(broken) }
  stop("all invariants hold", success: true)
}

/// One allocation from each layer, bottom up.
func tour(_ memory: MemorySystem) {
  let type = memory.kmem.type(named: "tour")
  let limits = RunConstraints(high: PhysicalAddress(16 << 20), alignment: .pageblock)
  guard
    // A block of frames, without a mapping; four zeroed pages at an address; 100 bytes of a type.
    let block = try? memory.physical.allocate(BlockOrder(3), role: .wired),
    let wired = try? memory.space.allocateWired(4, contents: .zero),
    let bytes = memory.kmem.alloc(100, type: type),
    // Pages that get a frame when they are first touched. A kernel with a page fault handler just uses them.
    let object = try? memory.paging.createObject("tour", 16),
    let paged = try? memory.paging.map(object, count: 16),
    (try? memory.paging.touch(paged, 4, .write)) != nil,
    // 2 MiB in a row, for a device that reaches 16 MiB.
    let run = try? memory.contiguous.contigmalloc(.mebibytes(2), type: type, where: limits)
  else { stop("no memory") }
  let words = UnsafeMutablePointer<UInt64>(bitPattern: UInt(wired.rawValue))!
  words[2047] = 7
  write("8 frames begin at frame ", UInt64(block.rawValue))
  write("the last word of 4 wired pages holds ", words[2047])
  write("of 16 pageable pages in memory: ", memory.paging.residentCount(object).rawValue)
  write("2 MiB in a row begin at frame ", UInt64(run.frames.first.rawValue))
  memory.contiguous.contigfree(run.address, size: .mebibytes(2), type: type)
  memory.paging.unmap(paged, 16)
  memory.paging.destroy(object)
  memory.kmem.free(bytes, size: 100, type: type)
  memory.space.freeWired(wired, 4)
  memory.physical.free(block, BlockOrder(3))
}

/// One processor without threads: it invalidates for itself, and no thread could ever wake a sleeper.
nonisolated(unsafe) var upcalls = cp_upcalls(
  context: nil,
  report_fault: { _, report in stop(report.assumingMemoryBound(to: FaultReport.self).pointee.what) },
  read_tick: { _ in cp_cycles() >> 20 }, shoot_down: { _, _, _ in cp_invalidate_all() },
  run_on: { _, _, body, argument in body(argument) }, sleep: { _, _, _, _, _, _ in .never },
  wake: { _, _ in }, start: nil, join: nil, confine: nil)

func assemble(_ image: cp_image, _ record: UInt64) throws(AssemblyError) -> MemorySystem {
  // Xen's struct hvm_start_info: the map's address is at byte 40, its length at 48. An entry has the layout of
  // cp_boot_range. Both lie below 1 MiB, where boot allocates nothing.
  let directMap = DirectMap(base: 0xffff_8000_0000_0000)
  let start = directMap.pointer(to: PhysicalAddress(record))
  let map = directMap.pointer(to: PhysicalAddress(start.load(fromByteOffset: 40, as: UInt64.self)))
  let ranges = map.assumingMemoryBound(to: cp_boot_range.self)
  let count = Int(start.load(fromByteOffset: 48, as: UInt32.self))
  guard MemorySystem.workspaceSize(ranges: count).rawValue <= UInt64(CP_WORKSPACE) else {
    stop("the firmware's map has too many ranges")
  }
  let machine = withUnsafePointer(to: &upcalls) {
    Machine(directMap: directMap, processorCount: 1, upcalls: $0)
  }
  let storage = UnsafeMutablePointer<cp_kernel_storage>(bitPattern: UInt(image.storage))!
  var request = BootRequest(machine: machine, workspace: cp_workspace(storage), firmwareRangeCount: count)
  func segment(_ span: cp_span, _ protection: Protection) -> ImageSegment {
    ImageSegment(
      address: VirtualAddress(span.first), physical: PhysicalAddress(span.first - image.virtual_offset),
      count: ByteCount(span.end - span.first).pagesRoundedUp, protection: protection)
  }
  // The pages below the stacks stay unmapped: their guards.
  let segments: InlineArray<7, ImageSegment> = [
    segment(image.text, .kernelText), segment(image.rodata, .kernelReadOnly),
    segment(image.symbols, .kernelReadOnly), segment(image.data, .kernelData),
    segment(image.stack.0, .kernelData), segment(image.stack.1, .kernelData),
    segment(image.stack.2, .kernelData),
  ]
  let (base, length) = (PhysicalAddress(image.physical.first), image.physical.end - image.physical.first)
  let taken: InlineArray<1, OccupiedRange> = [
    OccupiedRange(base: base, length: ByteCount(length), role: .image)
  ]
  return try segments.span.withUnsafeBufferPointer { (segments) throws(AssemblyError) in
    try taken.span.withUnsafeBufferPointer { (taken) throws(AssemblyError) in
      (request.image, request.occupied) = (segments, taken)
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

/// A line on COM1, which the stub has set up.
func write(_ text: StaticString, _ number: UInt64? = nil) {
  for index in 0..<text.utf8CodeUnitCount { _ = putchar(CInt(text.utf8Start[index])) }
  if let number { writeDigits(number) }
  _ = putchar(13)
  _ = putchar(10)
}

private func writeDigits(_ number: UInt64) {
  if number >= 10 { writeDigits(number / 10) }
  _ = putchar(CInt(48 + number % 10))
}

/// A Swift trap prints its text by it too, before it stops the processor.
@c(putchar) public func putchar(_ character: CInt) -> CInt {
  // Bit 5 of the line status: the port accepts a byte.
  while cp_in8(0x3fd) & 1 << 5 == 0 {}
  cp_out8(0x3f8, UInt8(truncatingIfNeeded: character))
  return character
}

/// Ends QEMU by its isa-debug-exit at port 0xf4, with status 33 or 35.
func stop(_ reason: StaticString, success: Bool = false) -> Never {
  write(reason)
  cp_out8(0xf4, success ? 0x10 : 0x11)
  while true { cp_halt() }
}

/// The entries for interrupts, further processors and threads, which this kernel has none of.
@c(kernel_interrupt) public func kernelInterrupt(_ frame: UnsafeMutableRawPointer) { stop("an interrupt") }
@c(kernel_processor) public func kernelProcessor() -> Never { stop("another processor") }
@c(kernel_thread) public func kernelThread() -> Never { stop("a thread") }
