// The other processors are woken: each that ACPI names is sent INIT, then twice the page at which to start (Intel SDM
// vol. 3A, 8.4.4.1), one after the other, and is given a stack, blocks of its own and its place in `Processors`.
//
// The record that a processor finds when it arrives (boot/processors.asm) is there once. A ticket in it is taken by
// whoever comes first: the processor that was called, or this one, when it has waited long enough; so a processor
// that comes later finds none and halts, and what was prepared for it serves the next.

import CPlatform
import KernelMemory
import KernelSpace
import MemoryPrimitives
import PhysicalMemory
import Synchronization

enum ProcessorStart {
  /// Milliseconds in which a processor answers.
  private static var patience: UInt64 { 500 }
  /// Of its exceptions' stacks: a report takes half of it.
  private static var stackPages: PageCount { PageCount(UInt64(8)) }
  private static let arrived = Atomic<UInt32>(0)

  private static var record: UnsafeMutablePointer<cp_processor_start> {
    Executive.directMap.pointer(to: PhysicalAddress(Image.layout.processor_start))
      .assumingMemoryBound(to: cp_processor_start.self)
  }
  private static var ticket: UnsafeMutablePointer<Atomic<UInt32>> {
    UnsafeMutableRawPointer(record).assumingMemoryBound(to: Atomic<UInt32>.self)
  }

  /// What one more processor runs on.
  private struct Room {
    var block: ProcessorBlock
    var interrupts: Stack
    var faults: Stack
    var idle: Thread
  }

  /// Starts all processors of `identities`, as far as memory goes. Interrupts are on.
  static func startAll(_ identities: UnsafeBufferPointer<UInt32>, _ memory: KernelMemory) {
    guard identities.count > 0 else { return }
    guard let page = trampolinePage(memory.physical) else {
      Processors.leftOut += identities.count
      return
    }
    let code = Image.layout.trampoline
    Executive.directMap.pointer(to: page).copyMemory(
      from: Executive.directMap.pointer(to: PhysicalAddress(code.first)),
      byteCount: Int(code.end - code.first))
    var room: Room?
    for identity in identities {
      if room == nil { room = makeRoom(memory) }
      guard let ready = room, start(identity, ready, page) else {
        Processors.leftOut += 1
        continue
      }
      room = nil
    }
    memory.physical.free(FrameRun(first: page, count: .one))
  }

  /// A frame below 640 KiB: what lies above belongs to the firmware, and a start-up message names a page by 8 bits.
  private static func trampolinePage(_ physical: PhysicalMemory) -> FrameNumber? {
    var constraints = RunConstraints()
    constraints.low = PhysicalAddress(0x1000)
    constraints.high = PhysicalAddress(0xa_0000)
    do throws(PhysicalMemoryError) {
      return try physical.allocate(run: .one, where: constraints, role: .wired).first
    } catch {
      return nil
    }
  }

  private static func makeRoom(_ memory: KernelMemory) -> Room? {
    do throws(PhysicalMemoryError) {
      let pages = ByteCount(MemoryLayout<cp_processor_block>.size).pagesRoundedUp
      let words = Executive.directMap.pointer(to: try memory.physical.allocate(run: pages, role: .boot).first)
      words.initializeMemory(as: UInt8.self, repeating: 0, count: Int(pages.bytes.rawValue))
      guard let interrupts = try? memory.space.allocateStack(stackPages),
        let faults = try? memory.space.allocateStack(stackPages), let idle = Thread.makeIdle(memory)
      else { return nil }
      return Room(
        block: words.assumingMemoryBound(to: cp_processor_block.self), interrupts: interrupts, faults: faults,
        idle: idle)
    } catch {
      return nil
    }
  }

  private static func start(_ identity: UInt32, _ room: Room, _ page: FrameNumber) -> Bool {
    let index = Processors.onlineCount
    Processors.add(room.block, index: index)
    room.block.pointee.identity = identity
    room.block.pointee.idle = UnsafeMutableRawPointer(room.idle.state)
    room.block.pointee.processor.thread = UnsafeMutableRawPointer(room.idle.state)
    room.idle.state.pointee.processor = UInt32(index)
    DescriptorTables.fill(
      room.block, doubleFault: room.faults.top.rawValue, nmi: room.interrupts.top.rawValue)
    record.pointee.identity = identity
    record.pointee.root = cp_read_cr3()
    record.pointee.control = cp_read_cr4()
    record.pointee.attributes = cp_read_msr(0x277)
    record.pointee.stack = room.idle.state.pointee.stackTop
    record.pointee.block = UInt64(UInt(bitPattern: room.block))
    ticket.pointee.store(1, ordering: .sequentiallyConsistent)

    LocalAPIC.sendInitialise(to: identity)
    rest(10)
    for _ in 0..<2 where ticket.pointee.load(ordering: .acquiring) != 0 {
      LocalAPIC.sendStartUp(to: identity, at: page)
      rest(1)
    }
    let deadline = Timer.now.rawValue + patience
    while ticket.pointee.load(ordering: .acquiring) != 0 && Timer.now.rawValue < deadline { cp_pause(0) }
    // From here on it comes too late.
    if ticket.pointee.exchange(0, ordering: .sequentiallyConsistent) != 0 { return false }
    while Processors.onlineCount == index { cp_pause(0) }
    Scheduler.add(idle: room.idle)
    return true
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
  LocalAPIC.enable(.other)
  Processors.noteOnline()
  LocalAPIC.startTimer(every: Scheduler.timerTicks)
  Scheduler.idle()
}
