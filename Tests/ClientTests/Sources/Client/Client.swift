// A program that uses Strata from outside of its package: it assembles a system, allocates from every layer, frees
// all of it, and reads statistics. It says "The client works." and succeeds, or names what is wrong.

import HostMachine
import KernelMemory

/// A result other than the one that the client expected.
struct Unexpected: Error {
  var what: String
}

func expect(_ condition: Bool, _ what: String) throws {
  if !condition { throw Unexpected(what: what) }
}

/// The layers of one small machine, each used once.
struct Client {
  let system: HostSystem
  var memory: MemorySystem { system.memory }

  func run() throws {
    let free = memory.physical.freeCount
    try useFrames()
    try useArena()
    try useKernelSpace()
    try useObjects()
    try usePageableMemory()
    try useContiguousMemory()
    try readStatistics()
    try expect(memory.checkInvariants() == nil, "all invariants hold")
    memory.kmem.trim()
    try expect(memory.physical.freeCount + 64 > free, "the frames are free again")
  }

  private func useFrames() throws {
    let block = try memory.physical.allocate(BlockOrder(3), role: .wired)
    try expect(block.rawValue & 7 == 0, "a block of eight frames is aligned to its size")
    memory.physical.free(block, BlockOrder(3))
    let below = RunConstraints(high: PhysicalAddress(16 << 20), alignment: .pageblock)
    let run = try memory.physical.allocate(run: 512, where: below, role: .wired)
    try expect(run.end.address <= PhysicalAddress(16 << 20), "a run lies below its limit")
    memory.physical.free(run)
  }

  private func useArena() throws {
    let storage = try wiredPages(for: Arena.stateSize)
    let options = ArenaOptions(name: "client numbers", quantum: .byte, contents: .identifiers)
    let numbers = Arena.create(options, in: storage.pointer, tags: memory.space.tags)
    try numbers.add(ArenaAddress(100), ArenaSize(50))
    let number = try numbers.alloc(ArenaSize(1))
    try expect(number >= ArenaAddress(100) && number < ArenaAddress(150), "a number of the span")
    numbers.free(number, ArenaSize(1))
    numbers.destroy()
    memory.space.freeWired(storage.address, storage.count)
  }

  private func wiredPages(
    for size: ByteCount
  ) throws -> (address: VirtualAddress, count: PageCount, pointer: UnsafeMutableRawPointer) {
    let count = size.pagesRoundedUp
    let address = try memory.space.allocateWired(count, contents: .zero)
    return (address, count, memory.machine.directMap.pointer(to: try physical(address)))
  }

  private func physical(_ address: VirtualAddress) throws -> PhysicalAddress {
    guard let translation = memory.pageTables.translate(address) else {
      throw Unexpected(what: "a mapped page")
    }
    return translation.physical
  }

  private func useKernelSpace() throws {
    let stack = try memory.space.allocateStack(4)
    try expect(memory.pageTables.translate(stack.guardPage) == nil, "the page below a stack is not mapped")
    memory.space.freeStack(stack)
    let registers = try memory.space.mapDevice(PhysicalAddress(0xfee0_0000), .kibibytes(4))
    try expect(try physical(registers) == PhysicalAddress(0xfee0_0000), "device registers are mapped")
    memory.space.unmapDevice(registers, .kibibytes(4))
  }

  private func useObjects() throws {
    let type = memory.kmem.type(named: "client")
    guard let bytes = memory.kmem.zalloc(100, type: type) else { throw Unexpected(what: "100 bytes") }
    try expect(bytes.load(as: UInt64.self) == 0, "zalloc clears")
    memory.kmem.free(bytes, size: 100, type: type)
    let cache = try memory.kmem.createCache(name: "client cache", size: 192, alignment: .cacheLine)
    guard let object = cache.alloc(type: type) else { throw Unexpected(what: "an object") }
    try expect(VirtualAddress(object).rawValue & 63 == 0, "an object begins a cache line")
    cache.free(object, type: type)
    memory.kmem.destroy(cache)
  }

  private func usePageableMemory() throws {
    let object = try memory.paging.createObject("client object", 16)
    let range = try memory.paging.map(object, count: 16)
    try memory.paging.touch(range, 16, .write)
    try expect(memory.paging.residentCount(object) == 16, "16 pages are in memory")
    try memory.paging.wire(range, 4, holes: .forbidden)
    memory.paging.unwire(range, 4)
    memory.paging.unmap(range, 16)
    memory.paging.destroy(object)
  }

  private func useContiguousMemory() throws {
    let type = memory.kmem.type(named: "client")
    let range = try memory.contiguous.contigmalloc(
      .mebibytes(2), type: type, where: RunConstraints(alignment: .pageblock))
    try expect(try physical(range.address) == range.frames.first.address, "contiguous memory is mapped")
    memory.contiguous.contigfree(range.address, size: .mebibytes(2), type: type)
    do {
      _ = try memory.contiguous.allocContig(ContiguousRequest(ByteCount.gibibytes(1).pagesRoundedUp))
      throw Unexpected(what: "no gibibyte in a machine of 64 MiB")
    } catch let failure as ContiguousFailure {
      try expect(failure.answer == .never, "a run larger than memory is refused for ever")
    }
  }

  private func readStatistics() throws {
    memory.statistics.add(
      Statistic("client.layers_used", .events, .counter, "layers", context: nil, read: { _ in 6 }))
    try expect(memory.statistics.value(of: "client.layers_used") == 6, "a row of the client's")
    guard let free = memory.statistics.value(of: "vm.frames.free") else {
      throw Unexpected(what: "a statistic by its name")
    }
    try expect(PageCount(free) == memory.physical.freeCount, "the statistic is the count of free frames")
    for index in 0..<memory.statistics.count {
      let row = memory.statistics[index]
      try expect(row.name.utf8CodeUnitCount > 0 && row.about.utf8CodeUnitCount > 0, "a row has a description")
    }
  }
}

@main enum Main {
  static func main() throws {
    try Client(system: HostSystem(memory: .mebibytes(64))).run()
    print("The client works.")
  }
}
