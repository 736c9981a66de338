// The text of a fault report on the host: the lines that the kernel prints, with the call sites by name.
//
// A call site keeps 30 bits of a code address. On the host they are completed by the address of this program's own code:
// of the addresses nearest to it that end in these bits, the first one that lies in a function is taken.

import Foundation
import MemoryPrimitives

enum HostFaultReport {
  /// The report as a block of lines of the console.
  static func text(_ report: FaultReport) -> String {
    var text = "FAULT  \(report.kind.description)\n"
    report.forEachLine(region: { _ in "not known" }, place: { line(place($0)) }) { label, words in
      text += "  " + label.description.padding(toLength: 10, withPad: " ", startingAt: 0)
      text += words.withBytes { String(decoding: $0, as: UTF8.self) } + "\n"
    }
    return text + "  Nothing was changed.\n"
  }

  private static func line(_ text: String) -> Line {
    var line = Line()
    for byte in text.utf8.prefix(200) { line.append(byte: byte) }
    return line
  }

  /// The function that holds a call site, and how far in; the address where no function is known.
  static func place(_ site: CallSite) -> String {
    let span: UInt64 = 1 << 30
    let own = UInt64(UInt(bitPattern: ownCode))
    let base = own & ~(span - 1) | UInt64(site.rawValue)
    for address in [base, base &- span, base &+ span] {
      guard let (name, offset) = function(at: address) else { continue }
      return "\(name) +0x\(String(offset, radix: 16))"
    }
    return "0x\(String(site.rawValue, radix: 16)) (the low 30 bits of an address)"
  }

  /// An address in this program's code.
  private static var ownCode: UnsafeRawPointer {
    let function: @convention(c) () -> Void = {}
    return unsafeBitCast(function, to: UnsafeRawPointer.self)
  }

  /// The answer of `dladdr`, as the C library lays it out.
  private struct Symbol {
    var file: UnsafePointer<CChar>?
    var base: UnsafeRawPointer?
    var name: UnsafePointer<CChar>?
    var start: UnsafeRawPointer?
  }
  private typealias FindSymbol = @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer) -> Int32

  /// The function that holds an address, and how far in. Where the program keeps no names, its file, as a symbolizer
  /// takes it. The C library's headers hide `dladdr` from Swift.
  private static func function(at address: UInt64) -> (name: String, offset: UInt)? {
    guard let pointer = UnsafeRawPointer(bitPattern: UInt(address)), let call = dlsym(nil, "dladdr") else {
      return nil
    }
    var symbol = Symbol()
    let found = withUnsafeMutablePointer(to: &symbol) {
      unsafeBitCast(call, to: FindSymbol.self)(pointer, UnsafeMutableRawPointer($0))
    }
    guard found != 0 else { return nil }
    if let name = symbol.name, let start = symbol.start {
      return (demangled(String(cString: name)), UInt(bitPattern: pointer) - UInt(bitPattern: start))
    }
    guard let file = symbol.file, let base = symbol.base else { return nil }
    let name = URL(fileURLWithPath: String(cString: file)).lastPathComponent
    return (name, UInt(bitPattern: pointer) - UInt(bitPattern: base))
  }

  private typealias Demangle =
    @convention(c) (
      _ name: UnsafePointer<CChar>, _ length: Int, _ output: UnsafeMutablePointer<CChar>?,
      _ outputLength: UnsafeMutablePointer<Int>?, _ flags: UInt32
    ) -> UnsafeMutablePointer<CChar>?

  /// The name as it was written in the source, where the language's runtime knows how.
  private static func demangled(_ name: String) -> String {
    guard let symbol = dlsym(nil, "swift_demangle") else { return name }
    let demangle = unsafeBitCast(symbol, to: Demangle.self)
    guard let text = demangle(name, name.utf8.count, nil, nil, 0) else { return name }
    defer { free(text) }
    return String(cString: text)
  }
}
