// The history of kernel space: wired ranges, stacks, device registers and contiguous pages, with every frame that is
// mapped behind them.

import KernelSpace
import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory

extension SeededHistory {
  private static var wired: UInt64 { 0 }
  private static var stack: UInt64 { 1 }
  private static var device: UInt64 { 2 }
  private static var contiguous: UInt64 { 3 }

  mutating func runKernelSpace() {
    let starts = pagesByKind()
    repeated({ history in
      if history.grows() {
        history.requestRange()
      } else {
        history.freeRange(history.random.below(UInt64(history.used)))
      }
    }) { $0.space.checkInvariants() ?? $0.physical.checkInvariants() }
    system.space.forEachRange { range, kind in
      fold(range.address.rawValue)
      fold(range.count.rawValue << 8 | UInt64(kind.rawValue))
    }
    while used > 0 { freeRange(0) }
    let ends = pagesByKind()
    for i in 0..<16 { require(starts[i] == ends[i], "not all pages of kernel space were freed") }
    examine { $0.space.checkInvariants() ?? $0.physical.checkInvariants() }
  }

  private func pagesByKind() -> InlineArray<16, UInt64> {
    var pages: InlineArray<16, UInt64> = .init(repeating: 0)
    RangeKind.forEach { pages[Int($0.rawValue)] = system.space.pages($0).rawValue }
    return pages
  }

  /// Requests a range. Its slot has the address, pages (bytes of a device's registers), and the kind.
  private mutating func requestRange() {
    do throws(KernelSpaceError) {
      switch random.below(8) {
      case 0: try requestStack()
      case 1: try requestRegisters()
      case 2: try requestContiguous()
      default: try requestWired()
      }
    } catch {
      countRefusal(error.rawValue)
    }
  }

  private mutating func requestWired() throws(KernelSpaceError) {
    let count = pageCount()
    let arena: WiredArena =
      switch random.below(6) {
      case 0: .metadata
      case 1: .interrupt
      case 2: .kernel
      default: .heap
      }
    let contents: InitialContents = random.oneIn(4) ? .zero : .unknown
    let address = try system.space.allocateWired(
      count, from: arena, role: .kmem, priority: priority(), contents: contents,
      for: FrameOwner("a history of kernel space"))
    visitPages(address, count) { history, page, frame in
      let memory = history.system.machine.directMap.pointer(to: frame)
      if contents == .zero { history.require(memory.load(as: UInt64.self) == 0, "a page is not zero") }
      memory.storeBytes(of: page.rawValue, as: UInt64.self)
    }
    record(Slot(a: address.rawValue, b: count.rawValue, c: Self.wired, d: 0))
  }

  /// Mostly up to 32 pages; one in 64 requests has megabytes, so that memory runs out.
  private mutating func pageCount() -> PageCount {
    PageCount(1 + (random.oneIn(64) ? random.below(4096) : random.below(1 << random.below(6))))
  }

  private mutating func requestStack() throws(KernelSpaceError) {
    let stack = try system.space.allocateStack(PageCount(1 + random.below(8)), priority: priority())
    require(translate(stack.guardPage) == nil, "a guard page is mapped")
    visitPages(stack.bottom, stack.count) { history, page, frame in
      history.system.machine.directMap.pointer(to: frame).storeBytes(of: page.rawValue, as: UInt64.self)
    }
    record(Slot(a: stack.bottom.rawValue, b: stack.count.rawValue, c: Self.stack, d: 0))
  }

  private mutating func requestRegisters() throws(KernelSpaceError) {
    // Far above any memory of such an instance.
    let physical = PhysicalAddress(0xfd_0000_0000 + random.below(1 << 30))
    let length = ByteCount(1 + random.below(1 << random.below(17)))
    let address = try system.space.mapDevice(physical, length)
    require(translate(address)?.physical == physical, "registers are mapped to another address")
    fold(address.rawValue)
    record(Slot(a: address.rawValue, b: length.rawValue, c: Self.device, d: 0))
  }

  private mutating func requestContiguous() throws(KernelSpaceError) {
    let count = pageCount()
    var constraints = RunConstraints()
    if random.oneIn(2) { constraints.alignment = Alignment(Page.size << random.below(6)) ?? .page }
    let attribute: CacheAttribute =
      switch random.below(6) {
      case 0: .uncached
      case 1: .writeCombining
      default: .writeBack
      }
    let range = try system.space.allocateContiguous(
      count, where: constraints, attribute: attribute, priority: priority())
    require(translate(range.address)?.attribute == attribute, "pages have another cache attribute")
    var next = range.frames.first
    visitPages(range.address, count) { history, _, frame in
      history.require(frame == next, "contiguous pages are not")
      next = next + .one
    }
    record(Slot(a: range.address.rawValue, b: count.rawValue, c: Self.contiguous, d: 0))
  }

  private mutating func freeRange(_ index: UInt64) {
    let slot = slots[Int(index)]
    let (address, count) = (VirtualAddress(slot.a), PageCount(slot.b))
    fold(slot.a)
    if slot.c == Self.wired || slot.c == Self.stack {
      visitPages(address, count) { history, page, frame in
        let word = history.system.machine.directMap.pointer(to: frame).load(as: UInt64.self)
        history.require(word == page.rawValue, "a page had two owners")
      }
    }
    switch slot.c {
    case Self.wired: system.space.freeWired(address, count)
    case Self.stack: system.space.freeStack(KernelStack(bottom: address, count: count))
    case Self.device: system.space.unmapDevice(address, ByteCount(slot.b))
    default: system.space.freeContiguous(address, count)
    }
    require(translate(address) == nil, "an address is still mapped")
    remove(Int(index))
  }

  private func translate(_ address: VirtualAddress) -> PageTranslation? {
    system.pageTables.translate(address)
  }

  /// Visits each page of a range with its frame, which goes into the checksum.
  private mutating func visitPages(
    _ first: VirtualAddress, _ count: PageCount,
    _ body: (inout SeededHistory, VirtualAddress, FrameNumber) -> Void
  ) {
    for i in 0..<count.rawValue {
      let page = first + PageCount(i)
      guard let translation = translate(page) else {
        require(false, "a page is not mapped")
        return
      }
      fold(page.rawValue)
      fold(translation.physical.rawValue)
      body(&self, page, translation.physical.frame)
    }
  }
}
