// Segments, task state and interrupt gates of a processor (Intel SDM vol. 3A, chapters 3.4, 8.7, 6.14).
//
// Long mode needs one code and one data segment, and a task state for the stacks of two exceptions. The double fault
// has a stack of its own, because it arrives when the current stack has run into its guard page. The NMI has one,
// because it may come at any instruction. A page fault stays on the stack of the thread, because its handler may
// sleep there.

import CPlatform

enum DescriptorTables {
  static var codeSelector: UInt64 { 8 }

  private static var doubleFaultStack: UInt64 { 1 }
  private static var nmiStack: UInt64 { 2 }

  /// Fills in and loads the tables of processor 0, and the interrupt table, which all share.
  static func install(_ image: UnsafePointer<cp_image>) {
    let gates = UnsafeMutablePointer<UInt64>(bitPattern: UInt(image.pointee.interrupt_table))
      .unsafelyUnwrapped
    for vector in 0..<256 {
      let entry = image.pointee.vectors + UInt64(vector) * 16
      let stack =
        switch vector {
        case Exception.doubleFault: doubleFaultStack
        case Exception.nmi: nmiStack
        default: UInt64(0)
        }
      // Present, an interrupt gate: it comes with interrupts off.
      let head = entry & 0xffff | codeSelector << 16 | stack << 32
      gates[vector * 2] = head | 0x8e << 40 | (entry >> 16 & 0xffff) << 48
      gates[vector * 2 + 1] = entry >> 32
    }
    let block = ProcessorBlock(bitPattern: UInt(image.pointee.processor)).unsafelyUnwrapped
    Processors.add(block, index: 0)
    fill(block, doubleFault: image.pointee.stack.1.end, nmi: image.pointee.stack.2.end)
    load(block)
  }

  /// Fills in the segments and the task state of one processor; the stacks are given by their ends.
  static func fill(_ block: ProcessorBlock, doubleFault: UInt64, nmi: UInt64) {
    let segments = cp_segments(block)
    let task = UnsafeMutableRawPointer(cp_task_state(block))
    // Task state: interrupt stack n at byte 36 + 8 * (n - 1); no port permissions behind its end.
    task.storeBytes(of: doubleFault, toByteOffset: 36, as: UInt64.self)
    task.storeBytes(of: nmi, toByteOffset: 44, as: UInt64.self)
    task.storeBytes(of: 104, toByteOffset: 102, as: UInt16.self)
    let taskAddress = UInt64(UInt(bitPattern: task))
    segments[1] = 0x00af_9b00_0000_ffff
    segments[2] = 0x00cf_9300_0000_ffff
    segments[4] = 103 | (taskAddress & 0xff_ffff) << 16 | 0x89 << 40 | (taskAddress >> 24 & 0xff) << 56
    segments[5] = taskAddress >> 32
  }

  /// Loads the tables of this processor.
  static func load(_ block: ProcessorBlock) {
    var segments = cp_table_register(limit: 6 * 8 - 1, base: UInt64(UInt(bitPattern: cp_segments(block))))
    var gates = cp_table_register(limit: 256 * 16 - 1, base: Image.layout.interrupt_table)
    cp_load_tables(&segments, &gates)
  }
}
