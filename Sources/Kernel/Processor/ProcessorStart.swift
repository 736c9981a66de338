// The start of the other processors, one after the other. Each that ACPI lists gets a stack, a block of its own and
// an index in `Processors`. It is sent INIT, then twice the page at which to start (Intel SDM vol. 3A, 9.4.4.1).
//
// There is one record for a processor that arrives (boot/processors.asm), and the next call overwrites it. A
// `StartTicket` in it decides whether the processor came in time, whether it has read its own record, and which of
// the two processors owns the preparation. A late processor halts, and its start page is never freed. No wait for a
// processor is longer than `answerTicks`.
//
// When memory is short, processors get half of the free memory at most. The rest of the boot, and the work that
// processors are started for, have the other half. A preparation that fails, or is not used, is freed.

import ACPI
import CPlatform
import KernelMemory
import KernelSpace
import MemoryPrimitives
import PhysicalMemory
import Synchronization

enum ProcessorStart {
  /// Milliseconds in which a processor answers.
  private static var answerTicks: UInt64 { 500 }
  /// Pages of each exception stack: a report uses half of it.
  private static var stackPages: PageCount { PageCount(UInt64(8)) }

  private static var record: UnsafeMutablePointer<cp_processor_start> {
    Executive.directMap.pointer(to: PhysicalAddress(Image.layout.processor_start))
      .assumingMemoryBound(to: cp_processor_start.self)
  }
  fileprivate static var ticket: StartTicket {
    StartTicket(UnsafeMutableRawPointer(record).assumingMemoryBound(to: Atomic<UInt64>.self))
  }

  /// The memory that one more processor runs on.
  private struct Preparation {
    let block: ProcessorBlock
    let blockRun: FrameRun
    let interrupts: KernelStack
    let faults: KernelStack
    let idle: Thread

    func free(_ memory: MemorySystem, _ threads: ThreadMemory) {
      idle.dispose(threads)
      memory.space.freeStack(faults)
      memory.space.freeStack(interrupts)
      memory.physical.free(blockRun)
    }
  }

  /// Starts all processors of `list` but the one that runs this, as far as memory goes. Interrupts are on.
  static func startOthers(_ list: ProcessorList, _ memory: MemorySystem, _ threads: ThreadMemory) {
    Processors.leftOut.unreachable = UInt32(list.unreachableCount)
    Processors.leftOut.surplus = UInt32(list.surplusCount)
    guard list.count > 1 else { return }
    guard let page = trampolinePage(memory.physical) else {
      Processors.leftOut.without_memory += UInt32(list.count - 1)
      return
    }
    let code = Image.layout.trampoline
    Executive.directMap.pointer(to: page).copyMemory(
      from: Executive.directMap.pointer(to: PhysicalAddress(code.first)),
      byteCount: Int(code.end - code.first))
    let reserve = PageCount(memory.physical.freeCount.rawValue / 2)
    var unused: Preparation?
    for index in 1..<list.count {
      guard let preparation = unused ?? prepare(memory, threads, keeping: reserve) else {
        Processors.leftOut.without_memory += 1
        continue
      }
      unused = nil
      switch start(list[index], preparation, page) {
      case .joined: break
      case .noAnswer:
        Processors.leftOut.mute += 1
        unused = preparation
      // The processor may still run on it.
      case .lost: Processors.leftOut.mute += 1
      }
    }
    unused?.free(memory, threads)
    // A processor that has not answered may come to this page at any time.
    if Processors.leftOut.mute == 0 { memory.physical.free(FrameRun(first: page, count: .one)) }
  }

  /// Allocates a frame below 640 KiB: the memory above belongs to the firmware, and a start-up message names a page
  /// by 8 bits.
  private static func trampolinePage(_ physical: FrameAllocator) -> FrameNumber? {
    var constraints = RunConstraints()
    constraints.low = PhysicalAddress(0x1000)
    constraints.high = PhysicalAddress(0xa_0000)
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        run: .one, where: constraints, role: .wired,
        for: FrameOwner("start of processors, below 1 MiB")
      ).first
    } catch {
      return nil
    }
  }

  /// Allocates the memory for one processor. Nil, and nothing allocated, when memory is short, or no more than
  /// `reserve` is free.
  private static func prepare(
    _ memory: MemorySystem, _ threads: ThreadMemory, keeping reserve: PageCount
  ) -> Preparation? {
    guard memory.physical.freeCount > reserve else { return nil }
    let pages = ByteCount(MemoryLayout<cp_processor_block>.size).pagesRoundedUp
    guard
      let run = try? memory.physical.allocate(
        run: pages, role: .wired, for: FrameOwner("a processor's block"))
    else { return nil }
    guard
      let interrupts = try? memory.space.allocateStack(
        stackPages, for: FrameOwner("a processor, interrupt stack"))
    else {
      memory.physical.free(run)
      return nil
    }
    guard
      let faults = try? memory.space.allocateStack(
        stackPages, for: FrameOwner("a processor, double fault stack"))
    else {
      memory.space.freeStack(interrupts)
      memory.physical.free(run)
      return nil
    }
    guard let idle = Thread.makeIdle(threads) else {
      memory.space.freeStack(faults)
      memory.space.freeStack(interrupts)
      memory.physical.free(run)
      return nil
    }
    let block = Executive.directMap.pointer(to: run.first)
    block.initializeMemory(as: UInt8.self, repeating: 0, count: Int(pages.bytes.rawValue))
    return Preparation(
      block: block.assumingMemoryBound(to: cp_processor_block.self), blockRun: run, interrupts: interrupts,
      faults: faults, idle: idle)
  }

  private static func start(
    _ identity: APICIdentity, _ preparation: Preparation, _ page: FrameNumber
  ) -> StartTicket.Outcome {
    let index = Processors.onlineCount
    let (block, idle) = (preparation.block, preparation.idle)
    Processors.add(block, index: index)
    block.pointee.identity = identity.rawValue
    block.pointee.idle = UnsafeMutableRawPointer(idle.storage)
    block.pointee.processor.thread = UnsafeMutableRawPointer(idle.storage)
    idle.record.processor = UInt32(index)
    DescriptorTables.fill(
      block, doubleFault: preparation.faults.top.rawValue, nmi: preparation.interrupts.top.rawValue)
    record.pointee.root = cp_read_cr3()
    record.pointee.control = cp_read_cr4()
    record.pointee.attributes = cp_read_msr(0x277)
    record.pointee.stack = idle.record.stackTop
    record.pointee.block = UInt64(UInt(bitPattern: block))
    ticket.call(identity.rawValue)

    LocalAPIC.sendInitialise(to: identity.rawValue)
    rest(10)
    for _ in 0..<2 where ticket.state == .called {
      LocalAPIC.sendStartUp(to: identity.rawValue, at: page)
      rest(1)
    }
    let deadline = Timer.now.rawValue + answerTicks
    while ticket.state != .joined && Timer.now.rawValue < deadline { cp_pause(0) }
    let outcome = ticket.withdraw(identity.rawValue)
    if outcome == .joined {
      Scheduler.add(idle: idle)
      withInterruptsOff { Processors.recordOnline(index) }
    }
    return outcome
  }

  private static func rest(_ ticks: UInt64) {
    let end = Timer.now.rawValue + ticks
    while Timer.now.rawValue <= end { cp_pause(0) }
  }
}

/// Called by boot/processors.asm on a processor that has just arrived, on the stack of its idle thread, with
/// interrupts off.
@c(kernel_processor)
public func kernelProcessor() -> Never {
  DescriptorTables.load(Processors.mine)
  // The idle thread runs from here on.
  cp_begin_idle(Processors.mine, cp_cycles())
  LocalAPIC.join()
  // A message to a controller that is not enabled is dropped, and messages may come as soon as this one has joined.
  LocalAPIC.enable(.other)
  guard ProcessorStart.ticket.join(Processors.mine.pointee.identity) else {
    while true { cp_halt() }
  }
  // The calling processor sets it, so it waits for no step that this processor may fail to take.
  while !Processors.isOnline(Int(cp_processor_index())) { cp_pause(0) }
  // No other processor has sent an invalidation for the translations that this one has cached so far.
  cp_invalidate_all()
  LocalAPIC.startTimer(every: Scheduler.timerTicks)
  Scheduler.idle()
}
