// The text of a fault report on the host: the lines that the kernel prints, with the call sites by name.
//
// A call site keeps 30 bits of a code address. On the host they are completed by the address of this program's own code:
// of the addresses nearest to it that end in these bits, the first one that lies in a function is taken.

import CPlatform
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

  /// The function that holds a call site, and how far in; the bits that are known where there is none.
  static func place(_ site: CallSite) -> String {
    if let name = cp_code_name(site.rawValue) { return String(cString: name) }
    return "0x\(String(site.rawValue, radix: 16)) (the low 30 bits of an address)"
  }
}
