// Bad input and how it ends: one line on standard error that says what and where, and an exit status of
// sysexits(3) that shows a script which kind it was.

import ArgumentParser
import Foundation
import KernelMemory

/// An error that ends a command.
struct Complaint: Error, CustomStringConvertible {
  /// sysexits(3), as far as used.
  enum Status: Int32 {
    case usage = 64
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

/// Runs `body`; a complaint becomes its one line and its exit status, and so does any other error.
func complaining(_ body: () throws -> Void) throws {
  let complaint: Complaint
  do {
    return try body()
  } catch let error as Complaint {
    complaint = error
  } catch let error as AssemblyError {
    complaint = Complaint("\(error.description)", .unavailable)
  } catch let error as ExitCode {
    throw error
  } catch {
    complaint = Complaint("\(error)", .software)
  }
  Terminal.standard.clearProgress()
  printToStandardError("strata: \(complaint)\n")
  throw ExitCode(complaint.status.rawValue)
}
