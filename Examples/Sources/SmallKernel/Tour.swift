// One allocation from each layer, bottom up.

import KernelMemory

struct Tour {
  let memory: MemorySystem

  func run() {
    useFrames()
    useKernelSpace()
    useObjects()
    usePageableMemory()
    useContiguousMemory()
  }

  /// Physical memory: a block of eight frames, without a mapping.
  private func useFrames() {
    guard let block = try? memory.physical.allocate(BlockOrder(3), role: .wired) else { fail("no block") }
    Serial.print("a block of 8 frames begins at frame ", UInt64(block.rawValue))
    memory.physical.free(block, BlockOrder(3))
  }

  /// Kernel space: an address, four zeroed frames and their mapping, and the use of it.
  private func useKernelSpace() {
    guard let range = try? memory.space.allocateWired(4, contents: .zero) else { fail("no wired range") }
    let words = UnsafeMutablePointer<UInt64>(bitPattern: UInt(range.rawValue))!
    words[2047] = 7
    Serial.print("the last word of 4 wired pages holds ", words[2047])
    memory.space.freeWired(range, 4)
  }

  /// kmem: 100 bytes of a type, whose statistics count them.
  private func useObjects() {
    let type = memory.kmem.type(named: "tour")
    guard let bytes = memory.kmem.alloc(100, type: type) else { fail("no object") }
    bytes.storeBytes(of: 9, as: UInt64.self)
    Serial.print("an object of kmem holds ", bytes.load(as: UInt64.self))
    memory.kmem.free(bytes, size: 100, type: type)
  }

  /// Paging: pages that get a frame when they are first touched. A kernel with a page fault handler just uses them.
  private func usePageableMemory() {
    guard let object = try? memory.paging.createObject("tour", 16),
      let range = try? memory.paging.map(object, count: 16),
      (try? memory.paging.touch(range, 4, .write)) != nil
    else { fail("no pageable memory") }
    Serial.print("of 16 pageable pages in memory: ", memory.paging.residentCount(object).rawValue)
    memory.paging.unmap(range, 16)
    memory.paging.destroy(object)
  }

  /// Contiguous memory: 2 MiB in a row, for a device that reaches 16 MiB.
  private func useContiguousMemory() {
    let type = memory.kmem.type(named: "tour")
    let limits = RunConstraints(high: PhysicalAddress(16 << 20), alignment: .pageblock)
    guard let run = try? memory.contiguous.contigmalloc(.mebibytes(2), type: type, where: limits) else {
      fail("no run")
    }
    Serial.print("2 MiB in a row begin at frame ", UInt64(run.frames.first.rawValue))
    memory.contiguous.contigfree(run.address, size: .mebibytes(2), type: type)
  }

  private func fail(_ reason: StaticString) -> Never { Power.off(.failed, reason) }
}
