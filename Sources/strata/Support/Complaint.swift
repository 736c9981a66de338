// Bad input and how it ends: one line on standard error that says what and where, and an exit status of
// sysexits(3) that tells a script which kind it was.

import ArgumentParser
import Foundation

/// An error that ends a command.
struct Complaint: Error, CustomStringConvertible {
  /// sysexits(3), as far as used.
  enum Status: Int32 {
    case dataError = 65
    case noInput = 66
    case unavailable = 69
    case software = 70
    case cannotCreate = 73
    case ioError = 74
  }

  let description: String
  let status: Status

  init(_ description: String, _ status: Status) {
    self.description = description
    self.status = status
  }

  /// A failed system call on a file, as `errno` has it.
  static func system(_ what: String, _ status: Status) -> Complaint {
    Complaint("\(what): \(String(cString: strerror(errno)))", status)
  }
}

/// Runs `body`; a complaint becomes its one line and its exit status.
func complaining(_ body: () throws -> Void) throws {
  do {
    try body()
  } catch let complaint as Complaint {
    Terminal.standard.clearProgress()
    FileHandle.standardError.write(Data("strata: \(complaint)\n".utf8))
    throw ExitCode(complaint.status.rawValue)
  }
}
