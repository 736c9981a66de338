// Every interrupt and exception arrives here. Device interrupts come through the two 8259A controllers,
// whose lines are moved to vectors 32 to 47, away from the exceptions.

import CPlatform
import MemoryPrimitives

/// The pair of interrupt controllers (Intel 8259A data sheet).
enum InterruptController {
  static var firstVector: UInt64 { 32 }
  private static var primary: UInt16 { 0x20 }
  private static var secondary: UInt16 { 0xa0 }

  /// Whether there is a controller: it keeps the mask that is written to it. Interrupts are off.
  private static func isThere(_ base: UInt16) -> Bool {
    let mask: UInt8 = 0xa5
    cp_out8(base + 1, mask)
    return cp_in8(base + 1) == mask
  }

  /// Moves the lines to vectors 32 to 47 and masks all of them. Stops the machine when there are no controllers.
  static func start() {
    cp_out8(primary, 0x11)
    cp_out8(secondary, 0x11)
    cp_out8(primary + 1, UInt8(firstVector))
    cp_out8(secondary + 1, UInt8(firstVector) + 8)
    cp_out8(primary + 1, 1 << 2)
    cp_out8(secondary + 1, 2)
    cp_out8(primary + 1, 1)
    cp_out8(secondary + 1, 1)
    guard isThere(primary), isThere(secondary) else {
      Reports.panic(
        "a machine that Strata refuses",
        "it has no 8259A interrupt controllers, by which its devices interrupt")
    }
    cp_out8(primary + 1, 0xff & ~(1 << 2))
    cp_out8(secondary + 1, 0xff)
  }

  static func unmask(line: UInt8) {
    let port = line < 8 ? primary + 1 : secondary + 1
    cp_out8(port, cp_in8(port) & ~(1 << (line & 7)))
  }

  /// Whether the controller has `line` in service: lines 7 and 15 also arrive when a request is withdrawn before it
  /// is acknowledged.
  static func isInService(line: UInt8) -> Bool {
    let port = line < 8 ? primary : secondary
    cp_out8(port, 0x0b)
    return cp_in8(port) & 1 << (line & 7) != 0
  }

  static func acknowledge(line: UInt8) {
    if line >= 8 { cp_out8(secondary, 0x20) }
    cp_out8(primary, 0x20)
  }
}

/// The lines in use.
enum InterruptLine {
  static var timer: UInt8 { 0 }
  static var serial: UInt8 { 4 }
}

enum Interrupts {
  /// Starts the controllers and the lines in use, and switches interrupts on.
  static func start() {
    InterruptController.start()
    Timer.start()
    SerialPort.receiveByInterrupt()
    InterruptController.unmask(line: InterruptLine.timer)
    InterruptController.unmask(line: InterruptLine.serial)
    cp_interrupts_enable()
  }

  /// Handles an interrupt of the local APIC. It is acknowledged first, because a tick may switch to another thread.
  fileprivate static func handle(local vector: UInt64) {
    LocalAPIC.acknowledge()
    let mine = Processors.mine
    mine.pointee.interrupts &+= 1
    switch vector {
    case LocalVector.timer:
      mine.pointee.beats &+= 1
      Watchdog.look(mine)
      Scheduler.preempt()
    case LocalVector.message: measured { Messages.serve() }
    case LocalVector.reschedule: Scheduler.preempt()
    case LocalVector.work:
      mine.pointee.beats &+= 1
      measured { atInterruptDepth { InterruptWork.serve(mine) } }
      Scheduler.preempt()
    // No code sends other vectors; one that arrives all the same is dropped.
    default: break
    }
  }

  /// Runs `body`, and counts it as an interval with interrupts off when those are measured.
  static func measured(_ body: () -> Void) {
    let mine = cp_processor()
    let start = mine.pointee.measuring != 0 ? cp_cycles() : 0
    body()
    if start != 0 { mine.pointee.longest_off = max(mine.pointee.longest_off, cp_cycles() &- start) }
  }

  /// Runs `body` with interrupts off as an interrupt handler, which has a page window of its own. A switch of threads
  /// is no part of a handler.
  static func atInterruptDepth(_ body: () -> Void) {
    let before = cp_set_handling(1)
    body()
    _ = cp_set_handling(before)
  }

  fileprivate static func handle(line: UInt8) {
    if line & 7 == 7 && !InterruptController.isInService(line: line) {
      // A spurious line 15 is real for the first controller, which has seen line 2.
      if line == 15 { InterruptController.acknowledge(line: 2) }
      return
    }
    Processors.mine.pointee.interrupts &+= 1
    measured {
      atInterruptDepth {
        switch line {
        case InterruptLine.timer: Timer.handleInterrupt()
        case InterruptLine.serial: SerialPort.handleInterrupt()
        default: break
        }
      }
      InterruptController.acknowledge(line: line)
    }
  }
}

/// Called by boot/interrupts.asm for every vector, with interrupts off.
@c(kernel_interrupt)
public func kernelInterrupt(_ frame: UnsafeMutablePointer<cp_trap_frame>) {
  let vector = frame.pointee.vector
  if vector == Exception.nmi && OtherProcessors.handleNMI(frame) == .nothing { return }
  if vector == Exception.pageFault {
    PageFaults.handle(frame)
  } else if vector == Exception.generalProtection && PageFaults.recover(frame) {
    // An access that may fail, at an address that is none.
  } else if vector < InterruptController.firstVector {
    Exception.report(frame)
  } else if vector < InterruptController.firstVector + 16 {
    Interrupts.handle(line: UInt8(vector - InterruptController.firstVector))
  } else if vector != LocalVector.spurious {
    Interrupts.handle(local: vector)
  }
}
