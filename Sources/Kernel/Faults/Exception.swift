// Reports of exceptions. The kernel survives only the page faults that PageFaults resolves, and causes no other
// exception on purpose.
//
// A Swift trap is an invalid opcode at an address in the trap table. A precondition has also sent its message through
// `putchar` before.

import CPlatform
import MemoryPrimitives
import Synchronization

enum Exception {
  static var nmi: Int { 2 }
  static var invalidOpcode: Int { 6 }
  static var doubleFault: Int { 8 }
  static var generalProtection: Int { 13 }
  static var pageFault: Int { 14 }

  /// Reports an exception other than a page fault, and stops.
  static func report(_ frame: UnsafePointer<cp_trap_frame>) -> Never {
    switch Int(frame.pointee.vector) {
    case doubleFault:
      // The exception that could not be delivered is most often the page fault of a stack that ran into its guard.
      let address = cp_read_cr2()
      if let stack = Stacks.span(guardedAt: address) { reportGuard(frame, "write to", address, below: stack) }
      FaultBlock.open("double fault", at: frame.pointee.rip)
      FaultBlock.field("what", "an exception could not be delivered; cr2 is \(VirtualAddress(address))")
      finish(frame, "")
    case invalidOpcode:
      reportTrap(frame)
    case nmi where Watchdog.isAccused():
      FaultBlock.open("no progress", at: frame.pointee.rip)
      FaultBlock.field("what", "interrupts were off for ten seconds: the watchdog sent an NMI")
      finish(frame, "")
    default:
      FaultBlock.open("\(name(frame.pointee.vector))", at: frame.pointee.rip)
      FaultBlock.field("what", "exception \(frame.pointee.vector), error code \(hex: frame.pointee.error)")
      finish(frame, "")
    }
  }

  /// The names of Intel SDM vol. 3A, table 6-1, in our words.
  private static func name(_ vector: UInt64) -> StaticString {
    switch vector {
    case 0: "divide error"
    case 1: "debug exception"
    case 2: "non-maskable interrupt"
    case 3: "breakpoint"
    case 4: "overflow exception"
    case 5: "bound range exceeded"
    case 7: "no floating point"
    case 10: "invalid task state"
    case 11: "segment not present"
    case 12: "stack segment fault"
    case 13: "general protection"
    case 16: "floating point error"
    case 17: "alignment check"
    case 18: "machine check"
    case 19: "vector floating point error"
    case 20: "virtualization exception"
    case 21: "control protection"
    default: "reserved exception"
    }
  }

  // -- Page faults

  private static func deed(_ cause: PageFaultCause) -> StaticString {
    cause.isFetch ? "execution of" : cause.isWrite ? "write to" : "read of"
  }

  /// Reports a page fault at `address` and stops. `why` is paging's reason when it could not bring the page in; nil
  /// where it was not called.
  static func report(_ frame: UnsafePointer<cp_trap_frame>, _ address: UInt64, _ why: Line?) -> Never {
    let cause = PageFaultCause(rawValue: frame.pointee.error)
    let deed = deed(cause)
    if let stack = Stacks.span(guardedAt: address) { reportGuard(frame, deed, address, below: stack) }
    let place: StaticString =
      if cause.isCorrupt {
        "a page whose table entry is corrupt"
      } else if why != nil {
        "a page that can't be brought in"
      } else if address < 1 << 16 {
        "the null page"
      } else if !cause.isProtection {
        "an address that is not mapped"
      } else if cause.isFetch {
        "memory that is not code"
      } else {
        "memory that is read-only"
      }
    FaultBlock.open("\(deed) \(place)", at: frame.pointee.rip)
    reportPageFault(frame, address, "\(VirtualAddress(address)), error code \(hex: frame.pointee.error)", why)
  }

  /// Reports a page fault on pageable memory in code that must not fault, and stops.
  static func report(_ frame: UnsafePointer<cp_trap_frame>, _ address: UInt64, forbidden title: Line) -> Never
  {
    FaultBlock.open(title, at: frame.pointee.rip)
    let deed = deed(PageFaultCause(rawValue: frame.pointee.error))
    reportPageFault(frame, address, "\(deed) \(VirtualAddress(address)), which is pageable", nil)
  }

  private static func reportPageFault(
    _ frame: UnsafePointer<cp_trap_frame>, _ address: UInt64, _ what: Line, _ why: Line?
  ) -> Never {
    FaultBlock.field("what", what)
    if let why { FaultBlock.field("why", why) }
    FaultBlock.field("owner", OwnerDescription.describe(address))
    FaultBlock.field("walk", TableWalk(address).describe(address))
    finish(frame, "", touched: address)
  }

  /// Reports that a stack ran into its guard page, or that a stray pointer touched one.
  private static func reportGuard(
    _ frame: UnsafePointer<cp_trap_frame>, _ deed: StaticString, _ address: UInt64, below stack: cp_span
  ) -> Never {
    FaultBlock.open("\(deed) a guard page", at: frame.pointee.rip)
    FaultBlock.field(
      "what", "\(VirtualAddress(address)), \(count: stack.first - address) bytes below a stack")
    FaultBlock.field("owner", OwnerDescription.describe(address))
    FaultBlock.field("walk", TableWalk(address).describe(address))
    let stackPointer = frame.pointee.rsp
    let ranOnIt = stackPointer >= stack.first &- 4096 && stackPointer <= stack.end
    if ranOnIt { finish(frame, "The stack overflowed.", overflowed: true) }
    finish(frame, "The stack above it is not the one in use: a stray pointer.")
  }

  // -- Traps of the language

  private static func reportTrap(_ frame: UnsafePointer<cp_trap_frame>) -> Never {
    let message = TrapMessage.remove()
    guard let site = Symbols.trap(at: frame.pointee.rip) else {
      FaultBlock.open(message.isEmpty ? "invalid opcode" : message.title, at: frame.pointee.rip)
      if !message.isEmpty { FaultBlock.field("what", message.text) }
      finish(frame, "")
    }
    var title = Line()
    title.append(bytes: site.message)
    FaultBlock.open(message.isEmpty ? title : message.title, at: frame.pointee.rip)
    var place = Line()
    place.append(bytes: site.file)
    place.append(line: ":\(site.line)")
    FaultBlock.field("what", message.isEmpty ? "a check of the language failed" : message.text)
    FaultBlock.field("where", message.place.count > 0 ? message.place : place)
    finish(frame, "")
  }

  // -- The end of every report

  /// Prints position, registers and backtrace, and stops. `touched` is the address of a page fault, because cr2 may
  /// hold that of a later one.
  private static func finish(
    _ frame: UnsafePointer<cp_trap_frame>, _ words: Line, overflowed: Bool = false, touched: UInt64? = nil
  ) -> Never {
    let f = frame.pointee
    if let locks = LockRank.heldLocks { FaultBlock.field("locks", locks) }
    FaultBlock.field("at", "\(Symbols.place(f.rip))   rip \(VirtualAddress(f.rip))")
    printRegisters(("rax", f.rax), ("rbx", f.rbx), ("rcx", f.rcx))
    printRegisters(("rdx", f.rdx), ("rsi", f.rsi), ("rdi", f.rdi))
    printRegisters(("rsp", f.rsp), ("rbp", f.rbp), ("r8 ", f.r8))
    printRegisters(("r9 ", f.r9), ("r10", f.r10), ("r11", f.r11))
    printRegisters(("r12", f.r12), ("r13", f.r13), ("r14", f.r14))
    printRegisters(("r15", f.r15), ("flg", f.rflags), ("cr2", touched ?? cp_read_cr2()))
    let recursed = printBacktrace(from: f.rbp, innermost: callerWithoutFrame(f))
    FaultBlock.stop(recursed && overflowed ? "The stack overflowed by recursion." : words)
  }

  private static func printRegisters(
    _ a: (StaticString, UInt64), _ b: (StaticString, UInt64), _ c: (StaticString, UInt64)
  ) {
    var line: Line = "  \(a.0) "
    line.append(register: a.1)
    line.append(line: "  \(b.0) ")
    line.append(register: b.1)
    line.append(line: "  \(c.0) ")
    line.append(register: c.1)
    SerialPort.print(line)
  }

  /// Finds the caller of a function that has not made its frame yet: at its first instruction the return address is
  /// on top of the stack, at the second one word deeper. It also finds the position from which a thread jumped to an
  /// address without code.
  private static func callerWithoutFrame(_ frame: cp_trap_frame) -> UInt64? {
    var place = frame.rsp
    if let (_, distance) = Symbols.function(at: frame.rip) {
      guard distance <= 1 else { return nil }
      place &+= distance * 8
    }
    guard place & 7 == 0, TableWalk.isReadable(place),
      let address = UnsafePointer<UInt64>(bitPattern: UInt(place))?.pointee, Image.isCode(address)
    else { return nil }
    return address
  }
}

/// The message of a Swift trap: `File.swift:51: Fatal error: text`. Each processor has a message of its own, because
/// several may trap at once.
struct TrapMessage {
  private var whole: Line

  /// Removes and returns the text that this processor has received since the last call.
  static func remove() -> TrapMessage {
    let mine = Processors.mine
    var whole = Line()
    whole.append(
      bytes: UnsafeBufferPointer(start: cp_trap_message(mine), count: Int(mine.pointee.trap_length)))
    mine.pointee.trap_length = 0
    return TrapMessage(whole: whole)
  }

  /// Adds a byte to this processor's message. Interrupts are off.
  static func append(_ byte: UInt8) {
    let mine = Processors.mine
    let count = mine.pointee.trap_length
    guard byte != UInt8(ascii: "\n"), count < UInt32(CP_TRAP_MESSAGE) else { return }
    cp_trap_message(mine)[Int(count)] = byte
    mine.pointee.trap_length = count + 1
  }

  var isEmpty: Bool { whole.count == 0 }

  /// The positions of the first two `: `. The file and line stand before the first, the kind before the second.
  private var marks: (Int, Int)? {
    var first = -1
    for i in 0..<max(0, whole.count - 1)
    where whole[i] == UInt8(ascii: ":") && whole[i + 1] == UInt8(ascii: " ") {
      if first >= 0 { return (first, i) }
      first = i
    }
    return nil
  }

  private func part(_ range: Range<Int>) -> Line {
    var line = Line()
    for i in range { line.append(byte: whole[i]) }
    return line
  }

  var place: Line { marks.map { part(0..<$0.0) } ?? Line() }

  var title: Line {
    guard let marks else { return "trap" }
    var line = Line()
    for i in (marks.0 + 2)..<marks.1 {
      let byte = whole[i]
      line.append(byte: byte >= UInt8(ascii: "A") && byte <= UInt8(ascii: "Z") ? byte + 32 : byte)
    }
    return line
  }

  var text: Line {
    guard let marks else { return whole }
    return part((marks.1 + 2)..<whole.count)
  }
}

/// Receives the message of a Swift trap, a byte at a time, before the trap. Interrupts stay off from the first byte
/// on, so that the thread traps on the processor that has its message.
@c(putchar)
public func putchar(_ byte: Int32) -> Int32 {
  _ = cp_interrupts_disable()
  TrapMessage.append(UInt8(truncatingIfNeeded: byte))
  return byte
}
